"""Page 3: RMSNorm. Replace the last line of `rms_norm`, then run: llama3 tour check 3"""

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x (T, dim), weight (dim,) -> (T, dim).

    Each row is divided by its root mean square; then each channel is multiplied by its weight:

        y[t, i] = x[t, i] / sqrt(mean of x[t]**2 + eps) * weight[i]
    """
    raise NotImplementedError
