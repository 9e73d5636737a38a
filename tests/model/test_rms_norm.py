"""RMSNorm against `plain.py` in float64, row by row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llama3 import plain
from llama3.model.rms_norm import rms_norm

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 9), st.integers(1, 300), st.floats(1e-3, 1e3))
def test_agrees_with_float64(seed, rows, dim, scale):
    rng = np.random.RandomState(seed)
    x = (rng.standard_normal((rows, dim)) * scale).astype(np.float32)
    weight = rng.standard_normal(dim).astype(np.float32)
    expected = plain.rms_norm(x.astype(np.float64), weight, 1e-5)
    y = rms_norm(x, weight, 1e-5)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@given(SEEDS)
def test_a_row_does_not_see_its_neighbours(seed):
    x = np.random.RandomState(seed).standard_normal((5, 64)).astype(np.float32)
    weight = np.ones(64, np.float32)
    assert np.array_equal(rms_norm(x, weight, 1e-5)[2], rms_norm(x[2:3], weight, 1e-5)[0])


def test_a_row_of_zeros_stays_zero():
    assert not rms_norm(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 1e-5).any()
