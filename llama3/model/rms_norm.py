"""RMSNorm: scale each row to a root mean square of one, then weigh each channel (Zhang and Sennrich 2019)."""

import numpy as np

from llama3.model.threads import by_rows


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x (T, dim) float32, weight (dim,) float32 -> (T, dim) float32. Rows do not affect one another."""
    return by_rows(lambda x: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight, x)
