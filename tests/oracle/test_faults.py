"""Faults planted in another implementation (faulty_llama.py, in torch) are named, and right ones are never accused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from llama3.checkpoint import Checkpoint, load_folder
from llama3.config import ModelConfig, RopeScaling
from llama3.llama import Llama
from llama3.parity import Reference, compare_model, explain
from llama3.parity.write_reference import load, reference_of
from tests.oracle.faulty_llama import FaultyLlama
from tests.pages import ROOT
from tests.tiny import random_tensors, tiny_config, write_hf

MODELS = {
    "grouped": tiny_config(n_heads=8, n_kv_heads=2),
    "scaled": tiny_config(rope_theta=10_000.0, norm_eps=1e-6, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "deep": tiny_config(n_layers=3, n_heads=6, n_kv_heads=3, head_dim=24, rope_theta=50_000.0, tied_embeddings=True),
}
SCALED = {"no_scaling", "factor"}
FAULTS: dict[str, tuple[str, Any]] = {  # of faulty_llama.py -> the cause, the value
    "pairs": ("rope_layout", True),
    "meta_rows": ("rope_layout", True),
    "theta": ("rope_theta", 123_456.0),
    "no_scaling": ("rope_scaling", True),
    "factor": ("rope_scaling", 27.0),
    "eps": ("norm_eps", 3e-3),
    "no_scale": ("missing_scale", True),
    "tiled": ("kv_head_order", True),
    "reversed_keys": ("kv_head_order", True),
    "no_mask": ("mask", True),
    "mask_added": ("mask", True),
    "sees_next": ("mask", True),
    "shift_from": ("cache_position", 9),
    "swapped": ("gate_up_swapped", True),
    "no_residual_1": ("residual_missing", True),
    "no_residual_2": ("residual_missing", True),
    "tied": ("tied_output", True),
}
NUMBER = {"theta": r"theta is ([\d,.]+)", "eps": r"norm_eps is ([\d.e-]+)", "factor": r"scaling is ([\d.]+)"}
Model = tuple[ModelConfig, dict[str, np.ndarray], Checkpoint]


@pytest.fixture(scope="module", params=[*MODELS, "demo"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "demo":
        folder = ROOT / "weights" / "demo"
        with safe_open(folder / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
        checkpoint = load_folder(folder)
        return checkpoint.config, tensors, checkpoint
    config = MODELS[request.param]
    tensors = random_tensors(config, 7)
    folder = write_hf(tmp_path_factory.mktemp("model"), config, tensors)
    return config, tensors, load_folder(folder)


def tokens_of(config: ModelConfig, length: int = 24, seed: int = 3) -> list[int]:
    return np.random.RandomState(seed).randint(0, config.vocab_size, length).tolist()


def cause_of(model: Model, dtype: torch.dtype = torch.float32, *, activations: bool = False, **faults: Any) -> str:
    config, tensors, checkpoint = model
    tokens = tokens_of(config)
    logits, seen = FaultyLlama(config, tensors, dtype, **faults).forward(tokens)
    name = str(dtype).removeprefix("torch.")
    r = Reference(
        np.array(tokens), logits, np.arange(len(tokens)), config, name, "faulty", "", seen if activations else {}
    )
    return str(explain(r, config, checkpoint.weights).cause)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_every_layer_is_named(model: Model, fault: str) -> None:
    cause, value = FAULTS[fault]
    config = model[0]
    if fault in SCALED and config.rope_scaling is None:
        pytest.skip("this model has no scaling")
    if cause == "kv_head_order" and (
        config.n_kv_heads == 1 or (fault == "tiled" and config.n_heads == config.n_kv_heads)
    ):
        pytest.skip("this model has one key head")
    if fault == "tied" and config.tied_embeddings:
        pytest.skip("the output is tied in this model")
    found = cause_of(model, **{fault: value})
    assert found.startswith(cause + ":") and "alone" not in found
    if fault in NUMBER:
        (number,) = re.findall(NUMBER[fault], found)
        assert float(number.replace(",", "")) == pytest.approx(value, rel=1e-3)
    if fault == "shift_from":
        assert f"from position {value} on" in found


@pytest.mark.slow
@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("fault", ["pairs", "theta", "no_scale", "mask_added", "swapped", "no_residual_1", "eps"])
def test_a_fault_in_one_layer_is_named_and_so_is_the_layer(model: Model, fault: str, activations: bool) -> None:
    cause, value = FAULTS[fault]
    found = cause_of(model, activations=activations, layer=1, **{fault: value})
    assert found.startswith(cause + ":") and found.endswith("in layer 1 alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(50))
def test_a_right_implementation_is_never_accused(number: int, tmp_path: Path) -> None:
    """In float32, bfloat16 and float16, by this torch model and by transformers with two kinds of attention."""
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
    dtype = (torch.float32, torch.bfloat16, torch.float16)[number % 3]
    name = str(dtype).removeprefix("torch.")
    tensors = random_tensors(config, number, {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[name])
    checkpoint = load_folder(write_hf(tmp_path, config, tensors))
    tokens = tokens_of(config, random.randint(1, 40), number)
    if number % 4:
        logits = FaultyLlama(config, tensors, dtype).forward(tokens)[0]
        r = Reference(np.array(tokens), logits, np.arange(len(tokens)), config, name, "torch", "")
    else:
        loaded = load(tmp_path, name)
        loaded.set_attn_implementation(("eager", "sdpa")[number % 8 // 4])
        r = reference_of(loaded, tokens, "", activations=True)
    assert explain(r, checkpoint.config, checkpoint.weights).cause == "rounding"


@pytest.mark.slow
def test_float32_angles_are_named(tmp_path: Path) -> None:
    config = tiny_config(max_seq_len=4096, head_dim=32)
    tensors = random_tensors(config, 2)
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:
            tensors[name] *= np.float32(4)  # sharp attention, as in trained models
    checkpoint = load_folder(write_hf(tmp_path, config, tensors))
    tokens = tokens_of(config, 1500)
    logits = FaultyLlama(config, tensors, float32_angles=True).forward(tokens)[0]
    positions = np.arange(1400, 1500)
    r = Reference(np.array(tokens), logits[positions], positions, config, "float32", "torch", "")
    assert str(explain(r, checkpoint.config, checkpoint.weights).cause).startswith("rope_angles:")


@pytest.mark.slow
def test_transformers_at_4096_tokens_is_matched_with_its_angles(tmp_path: Path) -> None:
    config = tiny_config(max_seq_len=4096, head_dim=64, n_layers=4, dim=64)
    folder = write_hf(tmp_path, config, random_tensors(config, 4))
    r = reference_of(load(folder), tokens_of(config, 4096), "")
    with_angles = compare_model(Llama.load(folder, rope_angles="float32").model, r)
    assert with_angles.ok, str(with_angles)
    assert compare_model(Llama.load(folder).model, r).logits["relative"].max() > with_angles.logits["relative"].max()
