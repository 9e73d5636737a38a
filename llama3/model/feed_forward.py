"""The feed-forward network with SwiGLU: one product opens or closes the channels of another (Shazeer 2020)."""

import numpy as np

from llama3.model.linear import linear


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x). For very negative x, exp overflows to infinity and the quotient is the right zero."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def feed_forward(x: np.ndarray, w1: np.ndarray, w2: np.ndarray, w3: np.ndarray) -> np.ndarray:
    """x (T, dim); w1, w3 (hidden_dim, dim); w2 (dim, hidden_dim) -> (T, dim). Each row is treated alone."""
    return linear(silu(linear(x, w1)) * linear(x, w3), w2)
