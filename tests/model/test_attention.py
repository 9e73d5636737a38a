"""Attention in blocks against `plain.py`, and what a query may see."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from llama3 import plain
from llama3.model import attention as module
from llama3.model.attention import BLOCK, attention, softmax


def plain_attention(q, k, v):
    """`plain.attention_scores` and `plain.softmax`, head by head, in float64."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    group = q.shape[1] // len(k)
    scores = [plain.attention_scores(q[:, j], k[j // group]) for j in range(q.shape[1])]
    return np.concatenate([plain.softmax(scores[j]) @ v[j // group] for j in range(q.shape[1])], axis=1)


def random_qkv(seed, n, start, n_kv_heads, group, head_dim):
    rng = np.random.RandomState(seed)
    q = rng.standard_normal((n, n_kv_heads * group, head_dim)).astype(np.float32)
    k, v = rng.standard_normal((2, n_kv_heads, start + n, head_dim)).astype(np.float32)
    return q, k, v


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(0, 70),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([2, 8, 64]),
)
def test_agrees_with_the_definition(seed, n, start, n_kv_heads, group, head_dim):
    q, k, v = random_qkv(seed, n, start, n_kv_heads, group, head_dim)
    np.testing.assert_allclose(attention(q, k, v), plain_attention(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("start", [0, 1, 65])
def test_agrees_with_the_definition_across_blocks(n, start):
    q, k, v = random_qkv(n, n, start, 2, 2, 8)
    np.testing.assert_allclose(attention(q, k, v), plain_attention(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5])
def test_the_heads_give_the_same_bits_on_one_thread_and_on_several(n):
    q, k, v = random_qkv(0, n, 900, 4, 2, 64)
    with threadpool_limits(2, user_api="blas"), mock.patch.object(module, "LARGE", 1):
        shared = attention(q, k, v)
    with mock.patch.object(module, "LARGE", 2**30):
        assert np.array_equal(attention(q, k, v), shared)


def test_the_future_is_not_seen():
    q, k, v = random_qkv(0, 20, 5, 2, 4, 8)
    before = attention(q, k, v)
    k[:, 15:], v[:, 15:] = 1e6, 1e30  # positions 15 on: rows 10 on
    after = attention(q, k, v)
    assert np.array_equal(before[:10], after[:10])
    assert np.all(before[10:] != after[10:])


def test_softmax_survives_huge_scores():
    p = softmax(np.array([[1e30, 1e30, -np.inf]], np.float32))
    assert np.array_equal(p, [[0.5, 0.5, 0]])
