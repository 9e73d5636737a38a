"""Right implementations are not accused, and stock transformers is matched at 4,096 tokens by its own angles.

The `slow` ones take minutes: `pytest -m slow tests/oracle/test_no_fault.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from llama3.checkpoint import load_folder
from llama3.config import RopeScaling
from llama3.llama import Llama
from llama3.parity import Reference, compare_model, explain
from llama3.parity.write_reference import load, reference_of
from tests.oracle.faulty_llama import FaultyLlama
from tests.oracle.test_faults import tokens_of
from tests.pages import ROOT
from tests.tiny import random_tensors, tiny_config, write_hf

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
KINDS = ("torch", "other_sums", "fused", "eager", "sdpa")  # the last two are transformers'
DEMO = ROOT / "weights" / "demo"


@pytest.mark.parametrize("number", [n if n < 10 else pytest.param(n, marks=pytest.mark.slow) for n in range(60)])
def test_a_right_implementation_is_never_accused(number: int, tmp_path: Path) -> None:
    """In float32, bfloat16 and float16, with sums in another order, with fused kernels, and by transformers."""
    random = np.random.RandomState(number)
    group, kv = (1, 2, 4)[number % 3], (1, 2)[number % 2]
    config = tiny_config(
        n_heads=group * kv,
        n_kv_heads=kv,
        n_layers=random.randint(1, 4),
        head_dim=2 * random.randint(4, 17),
        rope_theta=(1e4, 5e5)[random.randint(2)],
        norm_eps=(1e-5, 1e-6)[random.randint(2)],
        rope_scaling=(None, RopeScaling(), RopeScaling(4.0, 1.0, 4.0, 16))[random.randint(3)],
        tied_embeddings=bool(random.randint(2)),
    )
    dtype, kind = list(DTYPES)[number % 3], KINDS[number % 5]
    tensors = random_tensors(config, number, DTYPES[dtype])
    checkpoint = load_folder(write_hf(tmp_path, config, tensors))
    tokens = tokens_of(config, random.randint(1, 40), number)
    if kind in ("eager", "sdpa"):
        r = reference_of(load(tmp_path, dtype, kind), tokens, "", activations=bool(number % 2))
    else:
        logits = FaultyLlama(config, tensors, getattr(torch, dtype), **{kind: True}).forward(tokens)[0]
        r = Reference(np.array(tokens), logits, np.arange(len(tokens)), config, dtype, "torch", "")
    assert explain(r, checkpoint.config, checkpoint.weights, bos=tokens[0]).cause == "rounding"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_nor_is_one_that_runs_the_demo(kind: str, dtype: str) -> None:
    checkpoint = load_folder(DEMO)
    model = load(DEMO, dtype, kind if kind in ("eager", "sdpa") else None)
    tokens = tokens_of(checkpoint.config)
    if kind in ("eager", "sdpa"):
        r = reference_of(model, tokens, "")
    else:
        tensors = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
        logits = FaultyLlama(checkpoint.config, tensors, getattr(torch, dtype), **{kind: True}).forward(tokens)[0]
        r = Reference(np.array(tokens), logits, np.arange(len(tokens)), checkpoint.config, dtype, "torch", "")
    assert explain(r, checkpoint.config, checkpoint.weights).cause == "rounding"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_transformers_at_4096_tokens_is_matched_with_its_angles(seed: int, tmp_path: Path) -> None:
    """Each row to 1e-5. Without its angles, more than one row is off by more than that."""
    config = tiny_config(max_seq_len=4096, head_dim=64, n_layers=4, dim=64, n_heads=2 << seed)
    tensors = random_tensors(config, seed)
    folder = write_hf(tmp_path, config, tensors)
    r = reference_of(load(folder), tokens_of(config, 4096), "")
    with_angles = compare_model(Llama.load(folder, rope_angles="float32").model, r)
    assert with_angles.ok and len(with_angles.logits) == 4096, str(with_angles)
    without = compare_model(Llama.load(folder).model, r)
    assert np.sum(without.logits["relative"] > 1e-5) > 1


@pytest.mark.slow
def test_so_is_the_demo_in_its_whole_context() -> None:
    llama = Llama.load(DEMO, rope_angles="float32")
    r = reference_of(load(DEMO), tokens_of(llama.config, llama.config.max_seq_len), "")
    report = compare_model(llama.model, r)
    assert report.ok and len(report.logits) == 2048, str(report)
