"""The feed-forward network with SwiGLU: the gate decides how much of each channel passes (Shazeer 2020)."""

import numpy as np

from llama3.model.linear import linear, linears


def feed_forward(x: np.ndarray, w1: np.ndarray, w2: np.ndarray, w3: np.ndarray) -> np.ndarray:
    """x (T, dim); w1, w3 (hidden_dim, dim); w2 (dim, hidden_dim) -> (T, dim). Rows do not affect one another."""
    gate, up = linears(x, w1, w3)  # (T, hidden_dim) each
    return linear(silu(gate) * up, w2)


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x). For very negative x, exp overflows to infinity and the quotient is zero, which is right."""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))
