"""Writes a reference file with transformers: `python -m llama3.parity.write_reference MODEL OUT --prompt "Once upon"`.

This needs `pip install torch transformers`; nothing else in llama3 does.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from llama3.checkpoint.config_file import config_from_hf
from llama3.parity.reference_file import Reference, save_reference

DTYPES = ("float32", "float16", "bfloat16")  # not float64, because transformers computes norms and angles in float32


@torch.inference_mode()
def reference_of(
    model: Any, tokens: Sequence[int], label: str, positions: Sequence[int] | None = None, activations: bool = False
) -> Reference:
    """The output of a `LlamaForCausalLM` for one sequence of token ids.

    positions: the positions whose logits are kept (None: all). The output matrix is multiplied for these only.
    """
    kept = torch.arange(len(tokens)) if positions is None else torch.tensor(list(positions))
    recorded: dict[str, np.ndarray] = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            rows = (output[0] if isinstance(output, tuple) else output)[0]  # attention also returns its weights
            recorded[name] = (rows[kept] if name == "norm" else rows).float().numpy()

        return hook

    modules = {"tok_embeddings": model.model.embed_tokens, "norm": model.model.norm}
    for i, layer in enumerate(model.model.layers):
        modules |= {
            f"layers.{i}.attention": layer.self_attn,
            f"layers.{i}.feed_forward": layer.mlp,
            f"layers.{i}": layer,
        }
    hooks = [m.register_forward_hook(record(name)) for name, m in modules.items()] if activations else []
    try:
        logits = model(torch.tensor([list(tokens)]), logits_to_keep=kept, use_cache=False).logits[0]  # (n, vocab_size)
    finally:
        for hook in hooks:
            hook.remove()
    return Reference(
        tokens=np.array(tokens, np.int64),
        logits=logits.float().numpy(),
        positions=kept.numpy(),
        config=config_from_hf(model.config.to_dict()),
        dtype=str(model.dtype).removeprefix("torch."),
        producer=f"transformers {transformers.__version__}, torch {torch.__version__}",
        model=label,
        activations=recorded,
    )


def load(model: str | Path, dtype: str = "float32") -> Any:
    """Load a LlamaForCausalLM on the CPU from a folder in Hugging Face's form, or by its name on the hub."""
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llama3.parity.write_reference", description="Write a reference file from transformers."
    )
    parser.add_argument("model", help="a folder in Hugging Face's form, or a name on the hub")
    parser.add_argument("out", help="the file to write, NAME.safetensors")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", help="text, for the model's own tokenizer")
    text.add_argument("--tokens", type=int, nargs="+", metavar="ID", help="token ids")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype to compute in (default: %(default)s)")
    parser.add_argument("--positions", type=int, nargs="+", metavar="I", help="keep only these logits (default: all)")
    parser.add_argument("--activations", action="store_true", help="also keep the output of every block")
    args = parser.parse_args()
    tokens = args.tokens or transformers.AutoTokenizer.from_pretrained(args.model)(args.prompt).input_ids
    label = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    reference = reference_of(load(args.model, args.dtype), tokens, label, args.positions, args.activations)
    save_reference(args.out, reference)
    print(f"{args.out}: {len(tokens)} tokens, logits at {len(reference.positions)} positions, {reference.producer}")


if __name__ == "__main__":
    main()
