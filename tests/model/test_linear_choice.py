"""Which kind of product is chosen, what an error says, and that every kind computes the same model."""

import gc
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from llama3 import DeviceError, Llama
from llama3.model import linear_choice as module
from llama3.model.compiled import linear_amx
from llama3.model.compiled.jit import without_collections
from llama3.model.linear_choice import LinearChoice, choose_linear, prepare
from llama3.model.weights import Weights
from tests import quantised_files
from tests.tiny import random_tensors, tiny_config, write_hf

CONFIG = tiny_config()
INSTALL = "numba is not installed (pip install 'llama3[numba]')"
NO_AMX = "this CPU has no AMX"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("model"), CONFIG, random_tensors(CONFIG, dtype="bf16"))


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    return Llama.load(folder, linear="numpy").checkpoint.weights


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LLAMA3_LINEAR", raising=False)
    yield


def machine(numba: bool, amx: bool) -> mock._patch:
    """A machine that has these."""

    def missing(kind: str, weights: Weights) -> str | None:
        if kind != "numpy" and not numba:
            return INSTALL
        return NO_AMX if kind == "amx" and not amx else None

    return mock.patch.object(module, "missing", missing)


@pytest.mark.parametrize(
    ("numba", "amx", "kind", "why"),
    [
        (False, False, "numpy", INSTALL),
        (False, True, "numpy", INSTALL),
        (True, False, "numba", NO_AMX),
        (True, True, "amx", "this CPU has it"),
    ],
)
def test_auto_is_the_fastest_that_is_there_and_says_why(
    weights: Weights, numba: bool, amx: bool, kind: str, why: str
) -> None:
    with machine(numba, amx), mock.patch.object(module, "SMALL", 0):
        assert choose_linear(weights) == choose_linear(weights, "auto") == LinearChoice(kind, why)


def test_a_small_model_stays_with_numpy(weights: Weights) -> None:
    with machine(numba=True, amx=True):
        assert choose_linear(weights) == LinearChoice("numpy", "the model is small")


def test_the_environment_variable_chooses_and_an_argument_overrides_it(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA3_LINEAR", "numba")
    with machine(numba=True, amx=True):
        assert choose_linear(weights) == LinearChoice("numba", "LLAMA3_LINEAR names it")
        assert choose_linear(weights, "numpy").kind == "numpy"
        assert choose_linear(weights, "auto").kind == "numpy"


def test_bfloat16_activations_mean_amx(weights: Weights) -> None:
    with machine(numba=True, amx=True):
        assert choose_linear(weights, activations="bfloat16").kind == "amx"
        assert "rounded to bfloat16" in str(choose_linear(weights, "amx", "bfloat16"))


@pytest.mark.parametrize(
    ("linear", "activations", "message"),
    [
        ("mkl", "float32", "linear is 'mkl'; expected auto, numpy, numba or amx"),
        ("amx", "float32", f"linear is amx, but {NO_AMX}; numpy runs everywhere"),
        (None, "bf16", "activations is 'bf16'; expected float32 or bfloat16"),
        (None, "bfloat16", f"activations bfloat16 needs AMX, but {NO_AMX}; leave it out for float32"),
        ("numba", "bfloat16", "activations bfloat16 needs AMX, but linear is numba; leave it out for float32"),
    ],
)
def test_an_error_says_what_is_missing(weights: Weights, linear: str | None, activations: str, message: str) -> None:
    with machine(numba=True, amx=False), pytest.raises(DeviceError) as error:
        choose_linear(weights, linear, activations)
    assert str(error.value) == message


def test_without_numba_an_error_says_how_to_install_it(folder: Path) -> None:
    with mock.patch.object(module, "find_spec", lambda name: None), pytest.raises(DeviceError) as error:
        Llama.load(folder, linear="numba")
    assert str(error.value) == f"linear is numba, but {INSTALL}; numpy runs everywhere"


def test_float32_weights_stay_with_numpy(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, CONFIG, random_tensors(CONFIG))
    with mock.patch.object(module, "find_spec", lambda name: True), pytest.raises(DeviceError, match="no matrix fits"):
        Llama.load(folder, linear="numba")


def test_loading_kernels_leaves_the_garbage_collector_as_it_was() -> None:
    gc.unfreeze()  # what other tests have frozen
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(ValueError), without_collections():
                assert not gc.isenabled()
                raise ValueError
            assert gc.isenabled() == enabled and gc.get_freeze_count() == 0
        finally:
            gc.enable()


def test_numpy_leaves_the_weights_as_they_are(weights: Weights) -> None:
    assert prepare(weights, LinearChoice("numpy", "")) is weights


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize("head_dim", [16, 12])  # compiled attention takes multiples of 16; others stay with NumPy's
def test_numba_computes_the_same_model(head_dim: int, tmp_path: Path) -> None:
    config = tiny_config(head_dim=head_dim)
    folder = write_hf(tmp_path, config, random_tensors(config, dtype="bf16"))
    numpy, numba = Llama.load(folder, linear="numpy"), Llama.load(folder, linear="numba")
    tokens = np.random.RandomState(0).randint(0, CONFIG.vocab_size, 40).tolist()
    for n in (1, 2, 7, 40):
        a, b = numpy.logits(tokens[:n]), numba.logits(tokens[:n])
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


QUANTISED = ("int4 with zeros", "int8 packed with zeros", "float8 by row", "fp8 by block", "AWQ", "NF4 twice")


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize("name", QUANTISED)
def test_numba_computes_the_same_quantised_model(name: str, tmp_path: Path) -> None:
    folder, _ = quantised_files.write(tmp_path, quantised_files.BY_NAME[name], output=True)
    numpy, numba = Llama.load(folder, linear="numpy"), Llama.load(folder, linear="numba")
    tokens = np.random.RandomState(0).randint(0, CONFIG.vocab_size, 40).tolist()
    for n in (1, 7, 40):
        a, b = numpy.logits(tokens[:n]), numba.logits(tokens[:n])
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
def test_each_matrix_of_a_mixed_model_gets_the_class_for_it(tmp_path: Path) -> None:
    folder, _ = quantised_files.write(tmp_path, quantised_files.BY_NAME["int4 with zeros"])
    weights = Llama.load(folder, linear="numpy").checkpoint.weights
    layer, bf16 = weights.layers[0], np.zeros((64, 64), ml_dtypes.bfloat16)
    mixed = replace(weights, layers=[replace(layer, wk=layer.wk.rows(0, 16))], output=bf16)
    with mock.patch.object(module, "SMALL", 0), mock.patch.object(linear_amx, "missing", lambda: NO_AMX):
        choice = choose_linear(mixed)
    assert choice == LinearChoice("numba", NO_AMX)
    prepared = prepare(mixed, choice)
    kinds = {name: type(getattr(prepared.layers[0], name)).__name__ for name in module.NAMES}
    assert kinds["wq"] == kinds["w1"] == "NumbaQuantisedMatrix"
    assert kinds["w2"] == "QuantisedMatrix"  # 192 columns are not a multiple of 128
    assert kinds["wk"] == "ndarray" and type(prepared.output).__name__ == "NumbaMatrix"


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize(("name", "taken"), [("GPTQ 8 bits by row", True), ("int4 with zeros", True), ("NF4", False)])
def test_with_amx_numba_multiplies_by_the_quantised_matrices_that_amx_does_not_take(
    name: str, taken: bool, tmp_path: Path
) -> None:
    """AMX is chosen only if it has a matrix to multiply by."""
    from llama3.model.compiled import linear_amx_quantised

    folder, _ = quantised_files.write(tmp_path, quantised_files.BY_NAME[name])
    weights = Llama.load(folder, linear="numpy").checkpoint.weights
    mixed = replace(weights, output=np.zeros((64, 128), ml_dtypes.bfloat16))
    all_quantised = replace(weights, output=weights.layers[0].w1)
    with (
        mock.patch.object(module, "SMALL", 0),
        mock.patch.object(linear_amx, "missing", lambda: None),
        mock.patch.object(linear_amx, "AmxMatrix") as amx,
        mock.patch.object(linear_amx_quantised, "AmxQuantisedMatrix") as amx_quantised,
    ):
        choice = choose_linear(mixed, activations="bfloat16")
        assert choice.kind == choose_linear(mixed).kind == "amx"
        prepared = prepare(mixed, choice)
        assert prepared.output is amx.return_value
        amx.assert_called_once_with(mixed.output, 1)
        if taken:
            assert prepared.layers[0].wq is amx_quantised.return_value
            assert amx_quantised.call_args_list[0].args == (weights.layers[0].wq, 1)
            assert choose_linear(all_quantised).kind == "amx"
        else:
            assert type(prepared.layers[0].wq).__name__ == "NumbaQuantisedMatrix" and not amx_quantised.called
            lack = (
                "no matrix fits: bfloat16 in multiples of 32 rows and 32 columns, or 8 or 4 bits in multiples of 32 "
                "rows and 32 or 128 columns"
            )
            assert choose_linear(all_quantised) == LinearChoice("numba", lack)
            with pytest.raises(DeviceError, match=f"activations bfloat16 needs AMX, but {lack}"):
                choose_linear(all_quantised, activations="bfloat16")


def test_quantised_weights_of_other_shapes_stay_with_numpy(tmp_path: Path) -> None:
    folder, _ = quantised_files.write(tmp_path, quantised_files.BY_NAME["int8 by row"])  # 54 and 83 columns
    with mock.patch.object(module, "find_spec", lambda name: True), pytest.raises(DeviceError) as error:
        Llama.load(folder, linear="numba")
    assert str(error.value) == (
        "linear is numba, but no matrix fits: bfloat16 in multiples of 4 rows and 16 columns, or 8 or 4 bits in "
        "multiples of 4 rows and 16 or 128 columns; numpy runs everywhere"
    )
