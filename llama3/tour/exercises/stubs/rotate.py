"""Page 5: RoPE. Replace the last line of both functions, then run: llama3 tour check 5"""

import numpy as np

from llama3.config import ModelConfig


def rope_angles(positions: np.ndarray, c: ModelConfig) -> np.ndarray:
    """positions (T,) -> the angle of each pair of channels at each position, (T, c.head_dim / 2), in radians.

        angle[t, i] = positions[t] * c.rope_theta ** (-2 i / c.head_dim)

    c.rope_scaling is None here.
    """
    raise NotImplementedError


def rotate(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """x (T, heads, head_dim), angle (T, head_dim / 2) -> (T, heads, head_dim).

    Channels i and i + head_dim / 2 of a head are a pair, a point (a, b) in a plane. It is turned by angle[t, i]:

        a' = a cos - b sin
        b' = a sin + b cos
    """
    raise NotImplementedError
