"""Grades `rms_norm` (page 3)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import numpy as np

from llama3 import plain
from llama3.tour.exercises.part import Part, draw

Array = np.ndarray


def mean(x: Array) -> Array:
    return np.mean(x, axis=-1, keepdims=True)


def layer_norm(x: Array, weight: Array, eps: float) -> Array:
    return (x - mean(x)) / np.sqrt(mean((x - mean(x)) ** 2) + eps) * weight


MISTAKES: dict[str, Callable[[Array, Array, float], Array]] = {
    "it divides by the root of the mean, not of the mean square: square x before the mean": (
        lambda x, w, eps: x / np.sqrt(mean(x) + eps) * w
    ),
    "it divides by the mean of each row: square x before the mean, and take the root after it": (
        lambda x, w, eps: x / (mean(x) + eps) * w
    ),
    "it squares the mean instead of averaging the squares: square x before the mean": (
        lambda x, w, eps: x / np.sqrt(mean(x) ** 2 + eps) * w
    ),
    "it divides by the mean of absolute values: the mean is of squares": (
        lambda x, w, eps: x / (mean(np.abs(x)) + eps) * w
    ),
    "eps is outside the root: it belongs to the mean square, under the root": (
        lambda x, w, eps: x / (np.sqrt(mean(x**2)) + eps) * w
    ),
    "eps is missing: rows of small numbers become too large, and a row of zeros NaN": (
        lambda x, w, eps: x / np.sqrt(mean(x**2)) * w
    ),
    "weight is missing: multiply each channel by its weight": lambda x, w, eps: plain.rms_norm(x, np.ones_like(w), eps),
    "it multiplies by 1 + weight: here the weight stands alone": lambda x, w, eps: plain.rms_norm(x, 1 + w, eps),
    "the mean runs over positions (axis 0): each row has a mean of its own, over its channels (axis -1)": (
        lambda x, w, eps: x / np.sqrt(np.mean(x**2, axis=0, keepdims=True) + eps) * w
    ),
    "the means have lost their axis, so that they meet the channels and not the rows: keepdims=True": (
        lambda x, w, eps: x / np.sqrt(np.mean(x**2, axis=-1) + eps) * w
    ),
    "one mean is taken of the whole array: each row has its own (axis=-1, keepdims=True)": (
        lambda x, w, eps: x / np.sqrt(np.mean(x**2) + eps) * w
    ),
    "this is LayerNorm: it subtracts the mean of each row, and RMSNorm does not": layer_norm,
    "it subtracts the mean of each row, and RMSNorm does not": (
        lambda x, w, eps: (x - mean(x)) / np.sqrt(mean(x**2) + eps) * w
    ),
    "it divides by the root of the sum of squares: take their mean": (
        lambda x, w, eps: x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + eps) * w
    ),
    "the root is missing: it divides by the mean square": lambda x, w, eps: x / (mean(x**2) + eps) * w,
    "it multiplies by the root mean square instead of dividing by it": (
        lambda x, w, eps: x * np.sqrt(mean(x**2) + eps) * w
    ),
}
ROWS = draw(5, 8) * np.array([[1.0], [0.01], [30.0], [0.003], [2.0]])  # (5, 8): rows of many sizes
WEIGHT = draw(8, seed=1)
PARTS = [
    Part(
        "rms_norm",
        plain.rms_norm,
        {
            "5 random rows of 8 channels, large and small": (ROWS, WEIGHT, 1e-5),
            "8 rows of 8 channels": (draw(8, 8), WEIGHT, 1e-5),
            "a row of zeros": (np.concatenate([ROWS[:1], np.zeros((1, 8))]), WEIGHT, 1e-5),
        },
        MISTAKES,
        hint="each row is divided by the root of its own mean square plus eps",
    )
]


def install(functions: dict[str, Callable]) -> AbstractContextManager:
    """Let plain.forward use the reader's function."""
    return patch.object(plain, "rms_norm", functions["rms_norm"])
