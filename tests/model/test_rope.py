"""RoPE: scores depend on the distance alone, a pair turns as a complex number does, and Llama 3.1's scaling."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3 import plain
from llama3.config import ModelConfig, RopeScaling
from llama3.model.rope import rope_table, rotate

CONFIG = ModelConfig(64, 1, 4, 1, 16, 128, 100, rope_theta=500_000.0)


def rotated(x, position, config=CONFIG):
    """x (heads, head_dim) as if it stood at `position`."""
    cos, sin = rope_table(config, position + 1)
    return rotate(x[None], cos[position:], sin[position:])[0]


@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.integers(0, 500), st.integers(0, 8000))
def test_a_score_depends_on_the_distance_alone(seed, m, n, shift):
    rng = np.random.RandomState(seed)
    q, k = rng.standard_normal((2, 1, 16)).astype(np.float32)
    near = np.sum(rotated(q, m) * rotated(k, n))
    far = np.sum(rotated(q, m + shift) * rotated(k, n + shift))
    # The tables are float32, so an angle's cosine is known to 6e-8; nothing here is larger than |q| |k|.
    assert abs(near - far) <= 1e-5 * np.linalg.norm(q) * np.linalg.norm(k)


@pytest.mark.parametrize("position", [0, 1, 63, 8191])
def test_turns_the_complex_pair_by_position_times_frequency(position):
    x = np.random.RandomState(0).standard_normal((3, 16)).astype(np.float32)
    angle = position * 500_000.0 ** (-np.arange(8) / 8)
    pair = (x[:, :8] + 1j * x[:, 8:]) * np.exp(1j * angle)
    np.testing.assert_allclose(rotated(x, position), np.concatenate([pair.real, pair.imag], axis=1), atol=1e-6)


@pytest.mark.parametrize("scaling", [None, RopeScaling(), RopeScaling(32.0, 1.0, 4.0, 8192)])
def test_table_and_rotation_are_those_of_plain(scaling):
    config = dataclasses.replace(CONFIG, head_dim=128, rope_scaling=scaling)
    x = np.random.RandomState(0).standard_normal((8192, 2, 128)).astype(np.float32)
    expected = plain.rotate(x.astype(np.float64), plain.rope_angles(np.arange(8192), config))
    np.testing.assert_allclose(rotate(x, *rope_table(config, 8192)), expected, atol=1e-5)


def test_position_zero_changes_nothing():
    x = np.random.RandomState(0).standard_normal((3, 16)).astype(np.float32)
    assert np.array_equal(rotated(x, 0), x)


def test_scaling_leaves_fast_pairs_slows_slow_ones_and_blends_between():
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    wide = dataclasses.replace(CONFIG, head_dim=128)
    normal, stretched = (rope_angle(dataclasses.replace(wide, rope_scaling=s)) for s in (None, scaling))
    wavelength = 2 * np.pi / normal
    fast, slow = wavelength < 8192 / 4, wavelength > 8192 / 1
    between = ~fast & ~slow
    assert fast.any() and slow.any() and between.any()
    np.testing.assert_allclose(stretched[fast], normal[fast], rtol=1e-4)
    np.testing.assert_allclose(stretched[slow], normal[slow] / 8, rtol=1e-4)
    assert np.all((stretched[between] > normal[between] / 8) & (stretched[between] < normal[between]))


def rope_angle(config):
    """Radians a position, read back from the table."""
    cos, sin = rope_table(config, 2)
    return np.arctan2(sin[1].astype(np.float64), cos[1])
