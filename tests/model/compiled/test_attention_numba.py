"""Compiled attention against float64, and which bits do not change: chunks, single rows, threads, what lies behind."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

pytest.importorskip("numba", reason="numba is not installed")

from llama3.model.compiled import attention_numba as module
from llama3.model.compiled.attention_numba import KEYS, ROWS, attention
from llama3.model.compiled.jit import compiled
from llama3.model.compiled.vectors import LANES, instruction
from tests.model.test_attention import plain_attention, random_qkv


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 2 * ROWS + 1),
    start=st.integers(0, 3 * KEYS),
    n_kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 4, 5, 8]),
    head_dim=st.sampled_from([16, 64, 96, 128]),
)
def test_agrees_with_the_definition(seed, n, start, n_kv_heads, group, head_dim):
    q, k, v = random_qkv(seed, n, start, n_kv_heads, group, head_dim)
    y = attention(q, k, v)
    assert y.dtype == np.float32 and y.shape == (n, n_kv_heads * group * head_dim)
    np.testing.assert_allclose(y, plain_attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_agrees_with_the_definition_where_scores_are_large():
    """The largest score comes early in some rows and late in others, and most weights are zero."""
    q, k, v = random_qkv(0, 50, 200, 2, 4, 64)
    np.testing.assert_allclose(attention(20 * q, k, v), plain_attention(20 * q, k, v), rtol=1e-3, atol=1e-4)


def in_chunks(q, k, v, start, ends):
    """Attention of the rows up to each end in turn; the cache behind them holds NaN, as it may before it is written."""
    out = []
    for begin, end in pairwise([0, *ends]):
        keys, values = (np.full((len(x), start + len(q) + KEYS, x.shape[2]), np.nan, np.float32) for x in (k, v))
        keys[:, : start + end], values[:, : start + end] = k[:, : start + end], v[:, : start + end]
        out.append(attention(q[begin:end], keys[:, : start + end], values[:, : start + end]))
    return np.concatenate(out)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    ends=st.sets(st.integers(1, 3 * KEYS), min_size=1, max_size=6).map(sorted),
    start=st.integers(0, 2 * KEYS),
    group=st.sampled_from([1, 3, 4]),
    head_dim=st.sampled_from([64, 96, 128]),
)
def test_chunks_of_any_size_give_the_same_bits(seed, ends, start, group, head_dim):
    q, k, v = random_qkv(seed, ends[-1], start, 2, group, head_dim)
    np.testing.assert_array_equal(in_chunks(q, k, v, start, ends), attention(q, k, v))


@pytest.mark.parametrize("group", [1, 4, 6])
def test_one_row_at_a_time_gives_the_same_bits(group):
    q, k, v = random_qkv(1, 2 * KEYS + 5, 3, 2, group, 128)
    np.testing.assert_array_equal(in_chunks(q, k, v, 3, range(1, len(q) + 1)), attention(q, k, v))


def test_later_keys_and_values_of_the_same_chunk_do_not_matter():
    q, k, v = random_qkv(2, 80, 5, 2, 4, 64)
    before = attention(q, k, v)
    k[:, 45:], v[:, 45:] = np.nan, np.inf  # positions 45 on: rows 40 on
    after = attention(q, k, v)
    np.testing.assert_array_equal(before[:40], after[:40])
    assert np.isnan(after[40:]).all()


@pytest.mark.parametrize(("n", "start"), [(1, 5000), (70, 300)])
def test_the_number_of_threads_does_not_change_a_bit(n, start):
    q, k, v = random_qkv(3, n, start, 4, 4, 64)
    assert n * q.shape[1] * k.shape[1] >= module.LARGE
    first = attention(q, k, v)
    for threads in [1, 2, 3, 8]:
        with threadpool_limits(threads, user_api="blas"):
            np.testing.assert_array_equal(attention(q, k, v), first)


def test_read_only_and_strided_arrays_give_the_same_bits():
    q, k, v = random_qkv(4, 10, 60, 2, 4, 64)
    expected = attention(q, k, v)
    apart = np.repeat(q, 2, axis=1)[:, ::2]
    for array in (q, k, v, apart):
        array.flags.writeable = False
    np.testing.assert_array_equal(attention(q, k, v), expected)
    np.testing.assert_array_equal(attention(apart, k, v), expected)


@pytest.mark.parametrize("array", ["keys", "values"])
def test_a_cache_of_another_layout_is_refused(array):
    q, k, v = random_qkv(5, 1, 9, 2, 4, 16)
    other = np.ascontiguousarray(k.swapaxes(0, 1)).swapaxes(0, 1)  # positions before heads
    with pytest.raises(AssertionError):
        attention(q, *((other, v) if array == "keys" else (k, other)))


@instruction
def exp_of_some(x, y, i):
    y.store(module.exp(x.load(LANES, i)), i)


@compiled("void(float32[::1], float32[::1])")
def exp_of_each(x, y):
    """The length of x is a multiple of 16."""
    for i in range(0, len(x), LANES):
        exp_of_some(x, y, i)


def test_exp_is_within_2_units_in_the_last_place_over_the_whole_range():
    x = np.linspace(-104, 89, 4_000_000).astype(np.float32)
    y = np.empty_like(x)
    exp_of_each(x, y)
    exact = np.exp(x.astype(np.float64))
    finite = exact <= np.finfo(np.float32).max
    unit = np.spacing(exact[finite].astype(np.float32)).astype(np.float64)  # of subnormal results, too
    assert np.max(np.abs(y[finite] - exact[finite]) / unit) <= 2
    assert np.isinf(y[~finite]).all() and not finite.all()


def test_exp_of_zero_infinity_and_nan():
    x = np.array([0, -0.0, -np.inf, -1e30, -104.5, 1e30, np.inf, np.nan] * 2, np.float32)
    y = np.empty_like(x)
    exp_of_each(x, y)
    np.testing.assert_array_equal(y, np.array([1, 1, 0, 0, 0, np.inf, np.inf, np.nan] * 2, np.float32))
