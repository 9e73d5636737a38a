"""SwiGLU against `plain.py` in float64, and the ends of silu."""

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3 import plain
from llama3.model.feed_forward import feed_forward, swiglu


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_agrees_with_float64(seed, rows):
    rng = np.random.RandomState(seed)
    x, w1, w2, w3 = (rng.standard_normal(s).astype(np.float32) for s in ((rows, 24), (40, 24), (24, 40), (40, 24)))
    x64 = x.astype(np.float64)
    expected = plain.linear(plain.silu(plain.linear(x64, w1)) * plain.linear(x64, w3), w2)
    got = feed_forward(x, w1, w2, w3)
    assert got.dtype == np.float32
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_silu_has_the_right_ends_and_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = swiglu(np.array([-1e4, -100, 0, 100, 1e4], np.float32), np.float32(1))
    np.testing.assert_allclose(y, [0, 0, 0, 100, 1e4], atol=1e-30)
