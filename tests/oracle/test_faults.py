"""Faults planted in another implementation (faulty_llama.py, in torch) are named, with the layer and the number.

The `slow` ones, in three random models and the demo, take minutes: `pytest -m slow tests/oracle/test_faults.py`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from llama3.checkpoint import Checkpoint, load_folder
from llama3.config import ModelConfig, RopeScaling
from llama3.parity import Reference, explain
from llama3.parity.explanation import Explanation
from tests.oracle.faulty_llama import FaultyLlama
from tests.pages import ROOT
from tests.tiny import random_tensors, tiny_config, write_hf

MODELS = {
    "grouped": tiny_config(n_heads=8, n_kv_heads=2),
    "scaled": tiny_config(rope_theta=10_000.0, norm_eps=1e-6, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "deep": tiny_config(n_layers=3, n_heads=6, n_kv_heads=3, head_dim=24, rope_theta=50_000.0, tied_embeddings=True),
}
FAULTS: dict[str, tuple[str, Any]] = {  # a switch of faulty_llama.py -> the cause, the switch's value
    "pairs": ("rope_layout", True),
    "meta_rows": ("rope_layout", True),
    "theta": ("rope_theta", 123_456.0),
    "linear_scaling": ("rope_scaling", 2.5),
    "eps": ("norm_eps", 3e-3),
    "eps_outside": ("norm_eps", True),
    "no_scale": ("missing_scale", True),
    "no_mask": ("mask", True),
    "mask_added": ("mask", True),
    "sees_next": ("mask", True),
    "shift_from": ("cache_position", 9),
    "swapped": ("gate_up_swapped", True),
    "no_residual_1": ("residual_missing", True),
    "no_residual_2": ("residual_missing", True),
}
OF_SOME: dict[str, tuple[str, Any, tuple[str, ...]]] = {  # the same for faults that not every model can have
    "no_scaling": ("rope_scaling", True, ("scaled",)),
    "factor": ("rope_scaling", 27.0, ("scaled",)),
    "adds_scaling": ("rope_scaling", RopeScaling(16.0), ("grouped", "deep", "demo")),
    "tiled": ("kv_head_order", True, ("grouped", "scaled", "deep")),
    "reversed_keys": ("kv_head_order", True, ("grouped", "scaled", "deep")),
    "tied": ("tied_output", True, ("grouped", "scaled", "demo")),
}
NUMBER = {
    "theta": r"theta is ([\d,.]+)",
    "eps": r"norm_eps is ([\d.e-]+)",
    "factor": r"scaling is ([\d.]+)",
    "linear_scaling": r"divided by ([\d.]+)",
}
BOS = 5  # stands for <|begin_of_text|> where a model has no tokenizer
Model = tuple[ModelConfig, dict[str, np.ndarray], Checkpoint]


def slow_but(*quick: str) -> Any:
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in (*MODELS, "demo")]


def model_of(name: str, folder: Path, dtype: str = "fp32") -> Model:
    if name == "demo":
        demo = ROOT / "weights" / "demo"
        with safe_open(demo / "model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
        checkpoint = load_folder(demo)
        return checkpoint.config, tensors, checkpoint
    config = MODELS[name]
    tensors = random_tensors(config, 7, dtype)
    return config, tensors, load_folder(write_hf(folder, config, tensors))


def tokens_of(config: ModelConfig, length: int = 24, seed: int = 3) -> list[int]:
    return np.random.RandomState(seed).randint(0, config.vocab_size, length).tolist()


def written(model: Model, tokens: list[int], dtype: str = "float32", positions: Any = None, activations: bool = False,
            **faults: Any) -> Reference:  # fmt: skip
    """The file of the faulty implementation, with logits at these positions."""
    config, tensors, _ = model
    logits, seen = FaultyLlama(config, tensors, getattr(torch, dtype), **faults).forward(tokens)
    positions = np.arange(len(tokens)) if positions is None else np.array(positions)
    if len(logits) == len(tokens):
        logits = logits[positions]
    values = seen if activations else {}
    return Reference(np.array(tokens), logits.astype(np.float32), positions, config, dtype, "torch", "", values)


def explanation(model: Model, r: Reference, bos: int | None = None) -> Explanation:
    return explain(r, model[2].config, model[2].weights, bos=bos)


def cause_of(model: Model, **arguments: Any) -> str:
    return str(explanation(model, written(model, tokens_of(model[0]), **arguments)).cause)


def number_in(cause: str, fault: str) -> float:
    (number,) = re.findall(NUMBER[fault], cause)
    return float(number.replace(",", ""))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", slow_but("grouped"))
def test_a_fault_in_every_layer_is_named(name: str, fault: str, tmp_path: Path) -> None:
    cause, value = FAULTS[fault]
    found = cause_of(model_of(name, tmp_path), **{fault: value})
    assert found.startswith(cause + ":") and "alone" not in found
    if fault == "shift_from":
        assert f"from position {value} on" in found


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        pytest.param(fault, name, marks=[] if name == names[0] and name != "demo" else pytest.mark.slow)
        for fault, (_, _, names) in OF_SOME.items()
        for name in names
    ],
)
def test_so_is_one_that_only_some_models_can_have(name: str, fault: str, tmp_path: Path) -> None:
    cause, value, _ = OF_SOME[fault]
    found = cause_of(model_of(name, tmp_path), **{fault: value})
    assert found.startswith(cause + ":") and "alone" not in found


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("fault", ["pairs", "theta", "no_scale", "mask_added", "swapped", "no_residual_1", "eps"])
@pytest.mark.parametrize("name", slow_but("scaled"))
def test_a_fault_in_one_layer_is_named_and_so_is_the_layer(
    name: str, fault: str, activations: bool, tmp_path: Path
) -> None:
    cause, value = FAULTS[fault]
    found = cause_of(model_of(name, tmp_path), activations=activations, layer=1, **{fault: value})
    assert found.startswith(cause + ":") and found.endswith("in layer 1 alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "value", "cause", "name"),
    [
        ("linear_scaling", 2.5, "rope_scaling", "grouped"),
        ("factor", 27.0, "rope_scaling", "scaled"),
        ("no_mask", True, "mask", "deep"),
        ("sees_next", True, "mask", "demo"),
        ("shift_from", 9, "cache_position", "deep"),
        ("tiled", True, "kv_head_order", "grouped"),
        ("reversed_keys", True, "kv_head_order", "deep"),
        ("no_residual_2", True, "residual_missing", "demo"),
    ],
)
def test_so_is_each_other_kind_that_can_sit_in_one_layer(
    fault: str, value: Any, cause: str, name: str, tmp_path: Path
) -> None:
    found = cause_of(model_of(name, tmp_path), layer=1, **{fault: value})
    assert found.startswith(cause + ":") and found.endswith("in layer 1 alone")


def test_an_epsilon_outside_the_root_in_one_layer_is_named(tmp_path: Path) -> None:
    """With the epsilons of the models above, one layer's difference is below the limit of a comparison."""
    config = replace(MODELS["grouped"], norm_eps=1e-3)
    tensors = random_tensors(config, 7)
    model = config, tensors, load_folder(write_hf(tmp_path, config, tensors))
    found = cause_of(model, layer=1, eps_outside=True)
    assert found.startswith("norm_eps:") and found.endswith("in layer 1 alone")


def limit_of(model: Model, tokens: list[int], fault: str, value: float) -> float:
    """By how much, relatively, a number may be off because the other side computes in float32.

    The number is found by least squares. Noise e in the logits moves it by (e . s) / |s|^2, where s is their slope.
    That is at most |e| / |s|. Both are measured here in torch.
    """
    config, tensors, _ = model

    def logits(dtype: torch.dtype, value: float) -> np.ndarray:
        rows = FaultyLlama(config, tensors, dtype, **{fault: value}).forward(tokens)[0].astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    exact, h = logits(torch.float64, value), 1e-6
    slope = (logits(torch.float64, value * (1 + h)) - exact) / h
    return float(np.linalg.norm(logits(torch.float32, value) - exact) / np.linalg.norm(slope))


@pytest.mark.parametrize(("fault", "value"), [("theta", 123_456.0), ("theta", 432_109.0), ("eps", 3.4567e-3),
                                              ("factor", 27.1), ("linear_scaling", 2.345)])  # fmt: skip
@pytest.mark.parametrize("length", [24, 200])
@pytest.mark.parametrize("name", slow_but("scaled"))
def test_a_number_is_found_as_exactly_as_float32_allows(
    name: str, length: int, fault: str, value: float, tmp_path: Path
) -> None:
    model = model_of(name, tmp_path)
    if fault == "factor" and model[0].rope_scaling is None:
        value, fault = 2.345, "linear_scaling"  # this model has no factor
    tokens = tokens_of(model[0], length)
    found = number_in(str(explanation(model, written(model, tokens, **{fault: value})).cause), fault)
    assert abs(found / value - 1) <= 1.2 * limit_of(model, tokens, fault, value) + 5e-7  # which is the last digit shown


@pytest.mark.parametrize(("start", "positions"), [(1, None), (23, None), (13, range(7, 24, 8)), (9, [4, 22])])
def test_the_first_shifted_position_is_found(start: int, positions: Any, tmp_path: Path) -> None:
    model = model_of("deep", tmp_path)
    found = cause_of(model, shift_from=start, positions=positions)
    assert found.startswith("cache_position: ") and f"by +1 from position {start} on" in found


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("kernels", ["", "other_sums", "fused"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", slow_but("grouped"))
def test_the_order_of_the_cast_is_named(name: str, dtype: str, kernels: str, activations: bool, tmp_path: Path) -> None:
    model = model_of(name, tmp_path, {"bfloat16": "bf16", "float16": "fp16"}[dtype])
    switches = {"cast_order": True} | ({kernels: True} if kernels else {})
    found = cause_of(model, dtype=dtype, activations=activations, **switches)
    if (name, dtype, activations) == ("demo", "float16", False) and found == "rounding":
        # The limit of logits alone: single bits that differ have grown in four layers, so that with one kind of sums
        # the right order is 1.7 times as near, in 19 of 24 rows. That is not enough to name it.
        return
    assert found.startswith("cast_order:") and dtype in found


@pytest.mark.parametrize("fault", ["twice", "added", "dropped"])
@pytest.mark.parametrize("off_by_one", [False, True])
@pytest.mark.parametrize("name", slow_but("grouped"))
def test_a_hidden_begin_of_text_is_named(name: str, off_by_one: bool, fault: str, tmp_path: Path) -> None:
    """The files hold the same tokens. The other side adds one, or drops the file's, before it computes."""
    model = model_of(name, tmp_path)
    bos = model[2].tokenizer.bos_id if model[2].tokenizer else BOS
    text = [token for token in tokens_of(model[0]) if token != bos]
    tokens = text if fault == "added" else [bos, *text]
    logits = FaultyLlama(*model[:2]).forward(text if fault == "dropped" else [bos, *tokens])[0]
    right = np.arange(len(tokens))
    if fault == "dropped":
        positions = right[:-1] if off_by_one else right[1:]
    else:
        logits, positions = (logits[:-1] if off_by_one else logits[1:]), right
    r = Reference(np.array(tokens), logits, positions, model[0], "float32", "torch", "")
    found = str(explanation(model, r, bos).cause)
    assert found.startswith("bos: ") and ("off by one" in found) == off_by_one
    assert {"twice": "a second", "added": "does not have", "dropped": "drops"}[fault] in found


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("name", slow_but("deep", "scaled"))
def test_a_matrix_in_place_of_the_tied_or_the_own_output_is_named(name: str, activations: bool, tmp_path: Path) -> None:
    """From the final norm if the file holds it, else from more rows of logits than the norm has columns."""
    model = model_of(name, tmp_path)
    tokens = tokens_of(model[0], 24 if activations else model[0].dim * 13 // 10)
    found = str(explanation(model, written(model, tokens, activations=activations, untied=True)).cause)
    assert found.startswith("tied_output: ") and ("not the embedding table" in found) == model[0].tied_embeddings


@pytest.mark.parametrize(
    ("name", "length"),
    [("grouped", 600), *(pytest.param(name, 1500, marks=pytest.mark.slow) for name in [*MODELS, "demo"])],
)
def test_float32_angles_are_named(name: str, length: int, tmp_path: Path) -> None:
    config, tensors, checkpoint = model_of(name, tmp_path)
    if name != "demo":
        for key in tensors:
            if "q_proj" in key or "k_proj" in key:
                tensors[key] *= np.float32(4)  # sharp attention, as in trained models
        checkpoint = load_folder(write_hf(tmp_path / "sharp", config, tensors))
    model = config, tensors, checkpoint
    r = written(model, tokens_of(config, length), positions=np.arange(length - 100, length), float32_angles=True)
    assert str(explanation(model, r).cause).startswith("rope_angles:")
