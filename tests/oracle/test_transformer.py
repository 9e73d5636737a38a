"""Random models give transformers' logits and activations. The models differ in every run."""

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama3.checkpoint import load_folder
from llama3.config import ModelConfig, RopeScaling
from llama3.model.transformer import Transformer
from llama3.parity import compare_model
from llama3.parity.write_reference import load, reference_of
from tests.tiny import DTYPES, random_tensors, tiny_config, write_hf, write_meta

SEED = secrets.randbits(31)  # a failure's message names it
LENGTH = 80
SCALINGS = (None, None, RopeScaling(), RopeScaling(factor=32.0), RopeScaling(4.0, 1.0, 4.0, 64))


def draw(random: np.random.RandomState, group: int) -> ModelConfig:
    def one_of(*values: Any) -> Any:
        return values[random.randint(len(values))]

    n_kv_heads = one_of(1, 2)
    return tiny_config(
        dim=16 * one_of(2, 3, 4, 5),
        n_layers=one_of(1, 2, 3),
        n_heads=group * n_kv_heads,
        n_kv_heads=n_kv_heads,
        head_dim=2 * random.randint(2, 13),
        hidden_dim=random.randint(30, 120),
        vocab_size=random.randint(50, 300),
        norm_eps=one_of(1e-5, 1e-6),
        rope_theta=one_of(10_000.0, 500_000.0),
        max_seq_len=16_384,
        rope_scaling=one_of(*SCALINGS),
        tied_embeddings=one_of(True, False),
    )


@pytest.mark.parametrize("number", range(16))
def test_every_row_of_a_random_model_is_within_1e_5(number: int, tmp_path: Path) -> None:
    random = np.random.RandomState((SEED + number) % 2**32)
    config = draw(random, group=(1, 2, 4, 8)[number % 4])
    dtype = list(DTYPES)[number % 3]
    tensors = random_tensors(config, random.randint(2**31), dtype)
    tokens = random.randint(0, config.vocab_size, LENGTH).tolist()
    hugging_face = write_hf(tmp_path / "hf", config, tensors, shards=1 + number // 8)
    reference = reference_of(load(hugging_face), tokens, f"seed {SEED}, {dtype}, {config}", activations=True)
    folders = [hugging_face]
    if config.rope_scaling is None or config.rope_scaling.original_max_seq_len == 8192:
        folders.append(write_meta(tmp_path / "meta", config, tensors))
    for folder in folders:
        checkpoint = load_folder(folder)
        report = compare_model(Transformer(checkpoint.config, checkpoint.weights), reference, rtol=1e-5)
        assert report.ok, f"\n{report}\n{reference.model}"
        assert len(report.logits) == LENGTH and len(report.activations) == 2 + 3 * config.n_layers
