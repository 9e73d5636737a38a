"""Writes the demo's golden file with transformers: 200 token ids and their logits, as a reference file for the tests.

    python weights/training/golden.py tests/weights/demo_reference.safetensors

The tokens are a question in the chat format and its greedy continuation, past the stop token, 200 in all. The weights
are the shipped ones in bf16, and the arithmetic is float32.
"""

import argparse
from pathlib import Path

import torch
from train import Encoder
from train_tokenizer import load
from transformers import LlamaForCausalLM

from llama3.parity.reference_file import save_reference
from llama3.parity.write_reference import reference_of

QUESTION = "What is RoPE?"
LENGTH = 200


@torch.inference_mode()
def greedy_ids(model: LlamaForCausalLM, folder: Path) -> list[int]:
    encoder = Encoder(load(folder / "tokenizer.model"))
    header, body, _ = encoder.message("user", QUESTION)
    ids = [encoder.special["<|begin_of_text|>"], *header, *body, *encoder.message("assistant", "")[0]]
    while len(ids) < LENGTH:
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the demo's golden file.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "demo")
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    save_reference(args.out, reference_of(demo, greedy_ids(demo, args.model), label="weights/demo"))
