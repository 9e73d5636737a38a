"""Write the demo's golden file with transformers: 200 token ids and their logits, in this project's reference format.

    python weights/training/golden.py tests/weights/demo.safetensors

A prompt in the chat format, then the greedy continuation, past the stop token, to 200 tokens in all. The weights are
the shipped bf16 ones, the arithmetic is float32.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from train import Encoder
from train_tokenizer import load

QUESTION = "What is RoPE?"
LENGTH = 200


def golden(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(T,) int64 token ids; (T, vocab_size) float32 logits after each of them."""
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoder = Encoder(load(folder / "tokenizer.model"))
    header, body = encoder.message("user", QUESTION)
    ids = [encoder.special["<|begin_of_text|>"], *header, *body, *encoder.message("assistant", "")[0]]
    with torch.inference_mode():
        while len(ids) < LENGTH:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return torch.tensor(ids), model(torch.tensor([ids])).logits[0].contiguous()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the demo's golden file.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "demo")
    args = parser.parse_args()
    tokens, logits = golden(args.model)
    metadata = {
        "format": "llama3-reference",
        "version": "1",
        "producer": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "dtype": "float32",
        "config": (args.model / "config.json").read_text(encoding="utf-8"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": tokens, "logits": logits}, args.out, metadata=metadata)
    print(f"{args.out}: {len(tokens)} tokens, {json.dumps(tuple(logits.shape))} logits")
