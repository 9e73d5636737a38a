"""Faults planted in another implementation (faulty_llama.py, in torch) are named, and right ones are never accused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from llama3.checkpoint import Checkpoint, load_folder
from llama3.config import ModelConfig, RopeScaling
from llama3.parity import Reference, explain
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
    if value is not True and fault != "shift_from":
        assert f"{value:,.7g}" in found or f"{value:.4g}" in found or f"{value:.6g}" in found
    if fault == "shift_from":
        assert f"from position {value} on" in found
