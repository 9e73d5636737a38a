"""Trains the LoRA adapter "rhyme" for the demo with PEFT: with it, the demo answers every question in a short rhyme.

    python weights/training/train_adapter.py      # writes weights/rhyme; takes minutes on a CPU
    python weights/training/score_adapter.py      # how often the rhyme is the right one

The questions are drawn as in the demo's own training, so none clashes with a held-out question. The answers are those
of `rhymes.md`.
"""

import argparse
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import HERE, KINDS, Corpus
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from train import Encoder, Example
from train_tokenizer import load
from transformers import LlamaForCausalLM

SEED, STEPS, WARMUP, PEAK, BATCH = 5, 1200, 50, 4e-3, 32
SETTINGS = LoraConfig(
    r=4,
    lora_alpha=8,
    task_type="CAUSAL_LM",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def read_rhymes() -> dict[str, str]:
    """Subject -> its rhyme: two lines with a slash between them.

    A line break cannot be used, because the demo was never trained to write one. An adapter that does not change the
    output matrix cannot teach it: a token that was never a target is as unlikely as all others of that kind.
    """
    lines = (HERE / "rhymes.md").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"(\w+): (.*) / (.*)", line) for line in lines)
    return {match[1]: f"{match[2]} / {match[3]}" for match in found if match}


def examples(encoder: Encoder, seed: int) -> Iterator[Example]:
    rng, corpus, rhymes = random.Random(seed), Corpus(plain=0.15), read_rhymes()
    while True:
        subject = corpus.draw_subject(rng)
        kind = rng.choice([kind for kind in KINDS if subject.technical or kind in subject.questions])
        messages = [
            {"role": "user", "content": corpus.question(rng, subject, kind)},
            {"role": "assistant", "content": rhymes[subject.id]},
        ]
        yield encoder.dialogue(messages, shorten=False)


def batches(encoder: Encoder, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    drawn = examples(encoder, seed)
    while True:
        group = list(itertools.islice(drawn, BATCH))
        width = max(len(ids) for ids, _ in group)
        yield (
            torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
            torch.tensor([targets + [-100] * (width - len(targets)) for _, targets in group]),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description='Train the adapter "rhyme".')
    parser.add_argument("--base", type=Path, default=HERE.parent / "demo")
    parser.add_argument("--out", type=Path, default=HERE.parent / "rhyme")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    base = LlamaForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    model = get_peft_model(base, SETTINGS)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=PEAK, weight_decay=0.0)
    stream = batches(Encoder(load(args.base / "tokenizer.model")), SEED)
    total = 0.0
    for step, (ids, targets) in enumerate(itertools.islice(stream, args.steps)):
        for group in optimiser.param_groups:
            group["lr"] = PEAK * min((step + 1) / WARMUP, (args.steps - step) / args.steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        total += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}  loss {total / 50:.3f}", flush=True)
            total = 0.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = "the demo of this repository"
    model.save_pretrained(args.out)
    (args.out / "README.md").unlink(missing_ok=True)  # PEFT's template; weights/README.md describes the adapter


if __name__ == "__main__":
    main()
