"""Real trained weights (karpathy/tinyllamas, 8 query heads on 4, tied): what transformers made of them in float32."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from llama3 import Llama
from llama3.parity import Reference, compare_model


def test_two_hundred_greedy_ids_are_equal(stories260k: Path) -> None:
    expected = load_file(stories260k / "reference.safetensors")["tokens"].tolist()
    answer = Llama.load(stories260k).generate(expected[:1], max_tokens=len(expected) - 1, temperature=0)
    assert answer.tokens == expected[1:] and len(answer.tokens) == 200


def test_every_row_of_logits_is_within_1e_5(stories260k: Path) -> None:
    llama = Llama.load(stories260k)
    file = load_file(stories260k / "reference.safetensors")
    reference = Reference(
        tokens=file["tokens"].astype(np.int64),
        logits=file["logits"],
        positions=np.arange(len(file["tokens"])),
        config=llama.config,
        dtype="float32",
        producer="transformers",
        model="stories260K",
    )
    report = compare_model(llama.model, reference, rtol=1e-5)
    assert report.ok and report.logits["top1"].all(), f"\n{report}"
