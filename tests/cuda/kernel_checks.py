"""How far a kernel's result may be from a float64 reference of the same inputs."""

import ml_dtypes
import numpy as np

bfloat16 = ml_dtypes.bfloat16
# Mean squared error divided by mean square, for each row. Rounding to bf16 alone gives 2.6e-6.
LIMIT = {np.dtype(bfloat16): 1e-5, np.dtype(np.float32): 1e-10}
WORST = 0.02  # largest error of an element, relative to its row's largest element


def random(seed: int, *shape: int, dtype: type = bfloat16, scale: float = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Checks each row (the last axis) separately, so that a good row does not make up for a bad one."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    error = found.astype(np.float64) - expected
    nmse = (error**2).mean(axis=-1) / (expected**2).mean(axis=-1)
    worst = np.abs(error).max(axis=-1) / np.abs(expected).max(axis=-1)
    limit = LIMIT[found.dtype]
    assert (nmse <= limit).all(), (
        f"normalised mean squared error {nmse.max():.2e} at row {np.argmax(nmse)}; limit {limit}"
    )
    assert (worst <= WORST).all(), f"an element is off by {worst.max():.1%} of its row's largest"
