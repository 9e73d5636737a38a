"""Writes a reference file with transformers: `python -m llama3.parity.write_reference MODEL OUT --prompt "Once upon"`.

This needs `pip install torch transformers`; nothing else in llama3 does.
"""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from llama3.activation_names import choose_names
from llama3.checkpoint import Checkpoint
from llama3.checkpoint.config_file import config_from_hf
from llama3.errors import RequestError
from llama3.parity.reference_file import Reference, save_reference
from llama3.parity.transformers_hooks import recording
from llama3.parity.weights_hash import weights_hash

BLOCKS = ("tok_embeddings", "layers.*.attention", "layers.*.feed_forward", "layers.*", "norm")
DTYPES = ("float32", "float16", "bfloat16")  # not float64, because transformers computes norms and angles in float32


@torch.inference_mode()
def reference_of(
    model: Any,
    tokens: Sequence[int],
    label: str,
    positions: Sequence[int] | None = None,
    activations: bool | Collection[str] = False,
) -> Reference:
    """The output of a `LlamaForCausalLM` for one sequence of token ids.

    positions: the positions whose logits are kept (None: all). The output matrix is multiplied for these only.
    activations: names or patterns, as for `Llama.trace`; True: each block's output. Weights by head need a model with
    "eager" attention (see `load`). Raises RequestError for what cannot be recorded.
    """
    kept = torch.arange(len(tokens)) if positions is None else torch.tensor(list(positions))
    config = config_from_hf(model.config.to_dict())
    chosen = BLOCKS if activations is True else activations or ()
    with recording(model, [name for name in choose_names(chosen, config) if name != "logits"]) as recorded:
        logits = model(torch.tensor([list(tokens)]), logits_to_keep=kept, use_cache=False).logits[0]  # (n, vocab_size)
    attention = model.config._attn_implementation
    if "norm" in recorded:
        recorded["norm"] = recorded["norm"][kept.numpy()]
    return Reference(
        tokens=np.array(tokens, np.int64),
        logits=logits.float().numpy(),
        positions=kept.numpy(),
        config=config,
        dtype=str(model.dtype).removeprefix("torch."),
        producer=f"transformers {transformers.__version__}, torch {torch.__version__}, {attention} attention",
        model=label,
        activations=recorded,
    )


def load(model: str | Path, dtype: str = "float32", attention: str | None = None) -> Any:
    """Load a LlamaForCausalLM on the CPU from a folder in Hugging Face's form, or by its name on the hub.

    attention: "eager" or "sdpa"; None: transformers' own choice.
    """
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return loaded.eval()


def from_folder(
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    dtype: str,
    activations: Collection[str],
    attention: str | None = None,
) -> Reference:
    """`reference_of` for a loaded checkpoint in Hugging Face's form, with hashes of its weights.

    attention: see `load`; None: "eager" if activations are asked for.
    """
    if checkpoint.layout != "Hugging Face":
        raise RequestError(f"{checkpoint.path} has Meta's form; transformers reads Hugging Face's (config.json)")
    model = load(checkpoint.path, dtype, attention or ("eager" if activations else None))
    reference = reference_of(model, tokens, checkpoint.path.resolve().name, activations=activations)
    return replace(reference, weights=weights_hash(checkpoint.weights))


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
