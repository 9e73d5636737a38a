"""The matrix product `x @ w.T`, the only place where the transformer touches its large matrices."""

import numpy as np

TILE_ROWS = 512


def linear(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (T, in) float32, w (out, in) bfloat16, float16 or float32; returns x @ w.T, (T, out) float32."""
    if w.dtype == np.float32:
        return x @ w.T
    out = np.empty((len(x), len(w)), np.float32)
    tile = np.empty((min(TILE_ROWS, len(w)), w.shape[1]), np.float32)
    for r in range(0, len(w), TILE_ROWS):
        n = min(TILE_ROWS, len(w) - r)
        tile[:n] = w[r : r + n]
        np.matmul(x, tile[:n].T, out=out[:, r : r + n])
    return out
