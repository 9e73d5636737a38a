"""The feed-forward network with SwiGLU: the gate decides how much of each channel passes (Shazeer 2020)."""

from collections.abc import Callable

import numpy as np

from llama3.model.linear import linear, linears
from llama3.model.threads import by_rows


def feed_forward(
    x: np.ndarray, w1: np.ndarray, w2: np.ndarray, w3: np.ndarray, see: Callable[..., None] | None = None
) -> np.ndarray:
    """x (T, dim); w1, w3 (hidden_dim, dim); w2 (dim, hidden_dim) -> (T, dim). Rows do not affect one another."""
    gate, up = linears(x, w1, w3)
    if see:
        see(gate=gate, up=up)
    return linear(by_rows(swiglu, gate, up), w2)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(T, hidden_dim) each. For very negative x, exp overflows to infinity and the quotient is zero, which is right."""
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up
