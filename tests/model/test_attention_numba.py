"""Attention compiled by numba against float64, and that a row's bits depend on nothing but its own sequence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from threadpoolctl import threadpool_limits

from llama3 import plain
from llama3.model.attention_numba import KEYS, ROWS, attention, exp


def draw(n: int, length: int, n_kv_heads: int, group: int, head_dim: int, seed: int = 0) -> list[np.ndarray]:
    """q (n, n_heads, head_dim), k and v (n_kv_heads, length, head_dim) as views of a cache whose rest is NaN."""
    random = np.random.default_rng(seed)
    q = random.standard_normal((n, n_kv_heads * group, head_dim), dtype=np.float32)
    cache = np.full((2, n_kv_heads, length + 7, head_dim), np.nan, np.float32)
    cache[:, :, :length] = random.standard_normal((2, n_kv_heads, length, head_dim), dtype=np.float32)
    return [q, cache[0, :, :length], cache[1, :, :length]]


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    group = q.shape[1] // len(k)
    heads = [plain.softmax(plain.attention_scores(q[:, h], k[h // group])) @ v[h // group] for h in range(q.shape[1])]
    return np.concatenate(heads, axis=1)


@settings(deadline=None, max_examples=150)
@given(
    n=st.sampled_from([1, 2, 3, 7, ROWS - 1, ROWS, ROWS + 1, 70]),
    before=st.sampled_from([0, 1, 2, 15, 16, 17, KEYS - 1, KEYS, KEYS + 1, 200]),
    n_kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 4, 5, 8]),
    head_dim=st.sampled_from([8, 16, 24, 64, 72, 128]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_attention_in_float64(
    n: int, before: int, n_kv_heads: int, group: int, head_dim: int, seed: int
) -> None:
    q, k, v = draw(n, before + n, n_kv_heads, group, head_dim, seed)
    np.testing.assert_allclose(attention(q, k, v), exact(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("group", "head_dim"), [(4, 128), (3, 64), (1, 24), (8, 16)])
def test_chunks_neighbours_and_threads_do_not_change_a_bit(group: int, head_dim: int) -> None:
    length = 300
    q, k, v = draw(length, length, 2, group, head_dim)
    whole = attention(q, k, v)
    random = np.random.default_rng(1)
    for _ in range(60):
        begin = random.integers(0, length)
        end = random.integers(begin + 1, length + 1)
        with threadpool_limits(int(random.integers(1, 4)), user_api="blas"):
            part = attention(q[begin:end], k[:, :end], v[:, :end])
        np.testing.assert_array_equal(part, whole[begin:end])
    for row in range(length):
        np.testing.assert_array_equal(
            attention(q[row : row + 1], k[:, : row + 1], v[:, : row + 1]), whole[row : row + 1]
        )


def test_keys_and_values_behind_a_row_are_not_read() -> None:
    q, k, v = draw(40, 100, 2, 4, 64)
    expected = attention(q, k, v)
    for row in (0, 3, 17, 39):
        later = [array.copy() for array in (k, v)]
        for array in later:
            array[:, 60 + row + 1 :] = np.nan
        np.testing.assert_array_equal(attention(q, *later)[: row + 1], expected[: row + 1])


def test_large_scores_do_not_overflow() -> None:
    q, k, v = draw(20, 90, 1, 4, 64)
    np.testing.assert_allclose(attention(q * 100, k * 100, v), exact(q * 100, k * 100, v), rtol=1e-3, atol=1e-3)


@njit
def exp_of(x):
    return np.array([exp(number) for number in x])


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-110, 88.7, 400_001), -np.logspace(-8, 2, 10_000), [0, -np.inf]]).astype(np.float32)
    expected = np.exp(x.astype(np.float64)).astype(np.float32)
    ulp = np.maximum(np.spacing(expected), np.float32(2.0**-149))
    assert np.max(np.abs(exp_of(x).astype(np.float64) - expected) / ulp) <= 2
