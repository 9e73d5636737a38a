"""Rounding to codes: the scale has nearly the smallest squared error there is, and each code is the nearest one."""

import ml_dtypes
import numpy as np
import pytest

from llama3.quantize.scales import quantise

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
SCHEMES = [(8, 512), (4, 128), (4, 512)]


def draws(kind: str) -> np.ndarray:
    random = np.random.RandomState(0)
    w = {
        "normal": random.standard_normal((32, 512)),
        "heavy tails": random.standard_t(3, (32, 512)),
        "uniform": random.uniform(-1, 1, (32, 512)),
        "one sign": np.abs(random.standard_normal((32, 512))),
    }[kind]
    return (w * 0.02).astype(np.float32)


def values(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    wide = np.repeat(scales.astype(np.float64), codes.shape[1] // scales.shape[1], axis=1)
    return codes * wide


def errors(w: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The squared error of each group."""
    return ((w - values(codes, scales)) ** 2).reshape(scales.shape[0], scales.shape[1], -1).sum(axis=2)


def least_errors(w: np.ndarray, bits: int, width: int) -> np.ndarray:
    """The smallest error of each group, by trying 1,000 scales in float64."""
    groups, top = w.reshape(-1, width).astype(np.float64), 2 ** (bits - 1)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    found = np.full(len(groups), np.inf)
    for reach in np.linspace(0.9, 2.5, 1000):
        scale = largest / (top - 1) / reach
        codes = np.clip(np.rint(groups / scale), -top, top - 1)
        found = np.minimum(found, ((groups - codes * scale) ** 2).sum(axis=1))
    return found.reshape(len(w), -1)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "uniform", "one sign"])
@pytest.mark.parametrize(("bits", "width"), SCHEMES)
def test_the_error_is_near_the_least_and_below_that_of_the_largest_entrys_scale(kind: str, bits: int, width: int):
    w = draws(kind)
    found = errors(w, *quantise(w, bits, width, BF16)).sum()
    top = 2 ** (bits - 1)
    naive = np.abs(w).reshape(len(w), -1, width).max(axis=2) / (top - 1)
    naive_codes = np.clip(np.rint(w / values(np.ones_like(w), naive)), -top, top - 1)
    assert found <= 1.1 * least_errors(w, bits, width).sum()
    assert found <= 1.01 * errors(w, naive_codes, naive).sum()


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize(("bits", "width"), SCHEMES)
def test_each_code_is_the_nearest_one_to_its_entry(bits: int, width: int, dtype: np.dtype):
    w = draws("heavy tails")
    codes, scales = quantise(w, bits, width, dtype)
    top = 2 ** (bits - 1)
    assert scales.dtype == dtype and scales.shape == (len(w), w.shape[1] // width)
    exact = w / values(np.ones_like(w), scales)
    assert np.abs(codes - np.clip(exact, -top, top - 1)).max() <= 0.5 + 1e-4
    assert np.array_equal(codes, np.rint(codes)) and codes.min() >= -top and codes.max() <= top - 1


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize(("bits", "width"), SCHEMES)
def test_zeros_and_tiny_entries_stay_finite_and_become_zero(bits: int, width: int, dtype: np.dtype):
    w = np.zeros((3, 512), np.float32)
    w[1], w[2, 0] = 1e-40, -1e-40
    codes, scales = quantise(w, bits, width, dtype)
    assert not codes.any()
    assert (scales.astype(np.float32) > 0).all() and np.isfinite(scales.astype(np.float32)).all()


def test_the_smallest_numbers_of_float16_keep_a_positive_scale():
    w = np.full((1, 128), 6e-8, np.float32)
    codes, scales = quantise(w, 4, 128, F16)
    assert np.abs(values(codes, scales) - w).max() <= 1e-9 and scales[0, 0] > 0  # float16's smallest is 5.96e-8


@pytest.mark.parametrize(("bits", "width"), SCHEMES)
def test_a_rows_codes_do_not_depend_on_the_other_rows(bits: int, width: int):
    w = draws("normal")
    codes, scales = quantise(w, bits, width, BF16)
    for i in range(0, len(w), 7):
        alone, scale = quantise(w[i : i + 1], bits, width, BF16)
        assert np.array_equal(alone[0], codes[i]) and np.array_equal(scale[0], scales[i])


@pytest.mark.parametrize(("bits", "width"), SCHEMES)
def test_doubled_weights_have_the_same_codes_and_doubled_scales(bits: int, width: int):
    w = draws("normal")
    codes, scales = quantise(w, bits, width, BF16)
    doubled, twice = quantise(2 * w, bits, width, BF16)
    assert np.array_equal(doubled, codes) and np.array_equal(twice.astype("f4"), 2 * scales.astype("f4"))
