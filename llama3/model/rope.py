"""Rotary position embedding: each pair of channels turns by an angle that grows with the position (Su et al. 2021).

The dot product of a rotated query and a rotated key then depends on the distance between the two positions and not on
the positions themselves. Pair i of a head is channels i and i + head_dim / 2 ("split halves"), as Hugging Face stores
the weights. Meta's files pair channels 2i and 2i + 1; their wq and wk are reordered when they are loaded.
"""

import numpy as np

from llama3.config import ModelConfig, RopeScaling
from llama3.errors import RequestError


def rope_table(config: ModelConfig, length: int, angles: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of every angle: two (length, head_dim / 2) float32 arrays.

    angles: "float64", or "float32" for the numbers of transformers, whose angles are off by up to 6e-4 at 8,192 tokens.
    """
    if angles not in ("float64", "float32"):
        raise RequestError(f"rope_angles is {angles!r}; expected 'float64' or 'float32'")
    if angles == "float32":
        angle = rope_angles_float32(config, length)  # (length, head_dim / 2)
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    exponent = -np.arange(0, config.head_dim, 2) / config.head_dim  # (head_dim / 2,): from 0 to almost -1
    frequency = config.rope_theta**exponent  # (head_dim / 2,): radians a position; the first pairs turn fastest
    if config.rope_scaling is not None:
        frequency = _scale_frequency(frequency, config.rope_scaling)  # (head_dim / 2,)
    angle = np.outer(np.arange(length), frequency)  # (length, head_dim / 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope_angles_float32(config: ModelConfig, length: int) -> np.ndarray:
    """The angles (length, head_dim / 2) as transformers computes them, each operation rounded to float32; as float64.

    The power is rounded once: NumPy's own float32 power differs from torch's in the last bit more often.
    """
    one = np.float32(1)
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)  # (head_dim / 2,)
    theta = np.float64(np.float32(config.rope_theta))
    frequency = one / np.power(theta, exponent.astype(np.float64)).astype(np.float32)  # (head_dim / 2,)
    if s := config.rope_scaling:
        wavelength = np.float32(2 * np.pi) * (one / frequency)  # (head_dim / 2,): torch divides a number in this way
        low, high = s.original_max_seq_len / s.low_freq_factor, s.original_max_seq_len / s.high_freq_factor
        slow = frequency / np.float32(s.factor)  # (head_dim / 2,)
        width = np.float32(s.high_freq_factor - s.low_freq_factor)
        fast = (np.float32(s.original_max_seq_len) * (one / wavelength) - np.float32(s.low_freq_factor)) / width
        blend = (one - fast) * frequency / np.float32(s.factor) + fast * frequency  # (head_dim / 2,)
        frequency = np.where(wavelength > low, slow, np.where(wavelength < high, frequency, blend))  # (head_dim / 2,)
    angle = np.outer(np.arange(length, dtype=np.float32), frequency)  # (length, head_dim / 2) float32
    return angle.astype(np.float64)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x (T, heads, head_dim); cos, sin (T, head_dim / 2), the rows of `rope_table` for x's positions -> shape of x."""
    a, b = np.split(x, 2, axis=-1)  # (T, heads, head_dim / 2)
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, head_dim / 2): every head turns by the same angle
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _scale_frequency(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1's scaling for longer contexts (Meta's `apply_scaling`): slow pairs turn `factor` times more slowly.

    A pair is slow if it makes fewer than low_freq_factor turns in the original context, and fast if it makes more than
    high_freq_factor. Fast pairs are left as they are; those in between are blended.
    """
    turns = scaling.original_max_seq_len * frequency / (2 * np.pi)  # (head_dim / 2,): in the original context
    fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    fast = np.clip(fast, 0, 1)  # (head_dim / 2,): 0 slow, 1 fast
    return (1 - fast) * frequency / scaling.factor + fast * frequency
