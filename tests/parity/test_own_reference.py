"""References in float64, float32 and with rounding: how far apart they are, and what they hold."""

from pathlib import Path

import numpy as np
import pytest

from llama3 import plain
from llama3.activation_names import activation_names
from llama3.checkpoint import Checkpoint, load_folder
from llama3.errors import RequestError
from llama3.parity import compare_files, read_reference, rounding, rounding_sdpa, save_reference, torch_sums
from llama3.parity.own_reference import own_reference
from tests.tiny import random_tensors, tiny_config, write_hf

CONFIG = tiny_config()
TOKENS = np.random.RandomState(3).randint(0, CONFIG.vocab_size, 25).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_folder(write_hf(tmp_path_factory.mktemp("m") / "tiny", CONFIG, random_tensors(CONFIG, 1, "bf16")))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_everything_is_kept_saved_and_read(dtype: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = own_reference(checkpoint, TOKENS, dtype, "**")
    assert list(made.activations) == activation_names(CONFIG)[:-1]
    assert made.dtype == dtype and made.model == "tiny" and made.producer.startswith("llama3 ") and made.version == "2"
    save_reference(tmp_path / "r", made)
    report = compare_files(tmp_path / "r", made, rtol=0.0)
    assert report.ok and list(report.activations) == list(made.activations), f"\n{report}"
    assert read_reference(tmp_path / "r").weights == made.weights


def test_float32_agrees_with_float64_and_bfloat16_within_its_own_limits(checkpoint: Checkpoint) -> None:
    exact = own_reference(checkpoint, TOKENS, "float64", "**")
    assert compare_files(own_reference(checkpoint, TOKENS, "float32", "**"), exact).ok
    bf16 = own_reference(checkpoint, TOKENS, "bfloat16", ["layers.*", "norm"])
    report = compare_files(exact, bf16)
    assert report.ok and report.logits["relative"].min() > 1e-4, f"\n{report}"  # with limits for bfloat16


@pytest.mark.parametrize("attention", rounding.ATTENTION)
def test_every_rounded_value_is_a_number_of_the_dtype(attention: str, checkpoint: Checkpoint) -> None:
    def see(name: str, value: np.ndarray) -> None:
        dtype = "float32" if attention == "sdpa" and name.endswith((".scores", ".weights")) else "bfloat16"
        assert np.array_equal(value, rounding.round_to(value, dtype)), name

    rounding.forward(TOKENS, CONFIG, checkpoint.weights, see, attention=attention)


def test_rounding_to_float32_is_nearer_than_to_bfloat16_and_changes_no_module(checkpoint: Checkpoint) -> None:
    before = dict(vars(plain))
    exact = plain.forward(TOKENS, CONFIG, checkpoint.weights)
    errors = [
        np.linalg.norm(rounding.forward(TOKENS, CONFIG, checkpoint.weights, dtype=dtype) - exact)
        for dtype in ("float32", "float16", "bfloat16")
    ]
    assert errors[0] < errors[1] / 100 and errors[1] < errors[2] / 3 and dict(vars(plain)) == before


@pytest.mark.parametrize("width", [1, 2, 7, 64, 768, 769, 1600])
def test_a_product_and_a_sum_are_those_of_float64_to_float32_s_precision(width: int) -> None:
    random = np.random.RandomState(width)
    x, w = random.standard_normal((5, width)), random.standard_normal((4, width))
    bound = 1e-6 * (np.abs(x) @ np.abs(w).T + 1) * max(1, width / 100)
    assert np.all(np.abs(torch_sums.product(x, w) - x @ w.T) <= bound)
    terms = np.abs(x).astype(np.float32)
    for total in (torch_sums.row_sum(terms), torch_sums.lane_sum(terms)):
        np.testing.assert_allclose(total[:, 0], terms.astype(np.float64).sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("T", [1, 15, 40, 600])
def test_sdpa_is_attention(T: int) -> None:
    q, k, v = (rounding.round_to(np.random.RandomState(i).standard_normal((T, 8)), "bfloat16") for i in range(3))
    exact = plain.softmax(plain.attention_scores(q, k)) @ v
    found = rounding_sdpa.attend(q, k, v, lambda x: rounding.round_to(x, "bfloat16"))
    error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(v, axis=1).mean()
    assert error.max() < 2.0**-8


def test_the_fast_exponential_is_exact_to_four_digits_and_0_far_below() -> None:
    x = np.concatenate([np.linspace(-87, 0, 10_001), [-88, -200, -np.inf]]).astype(np.float32)
    found = rounding_sdpa.fast_exponential(x)
    np.testing.assert_allclose(found[:-3], np.exp(x[:-3].astype(np.float64)), rtol=1.1e-4)
    assert not found[-3:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], "float64"), "expected at least one token"),
        (([96], "float64"), r"ids from 0 to 95; found \[96\]"),
        (([1], "int8"), "dtype is 'int8'; expected float64, float32, bfloat16, float16"),
        (([1], "float64", "layers.2"), "there is no layer 2"),
        (([1], "bfloat16", (), "flash"), "attention is 'flash'; expected eager or sdpa"),
    ],
)
def test_what_cannot_be_made_is_one_line(checkpoint: Checkpoint, arguments: tuple, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        own_reference(checkpoint, *arguments)
