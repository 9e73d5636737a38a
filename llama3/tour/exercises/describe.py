"""Says in one line how a result differs from the right one, where no known mistake explains it.

The rows are compared with llama3.parity's measures. A row is a position.
"""

from typing import Any

import numpy as np

from llama3.parity.measures import compare_rows

LIMIT = 1e-6  # relative error of a row; float32 inside the reader's function is good enough


def same(found: Any, expected: Any) -> bool:
    """Whether two results are equal to rounding. NaN equals NaN, so that a mistake that makes NaN is recognised."""
    if not isinstance(expected, np.ndarray):
        return bool((found.tolist() if isinstance(found, np.ndarray) else found) == expected)
    if not isinstance(found, np.ndarray) or found.shape != expected.shape or found.dtype.kind not in "fiu":
        return False
    nan = np.isnan(expected)
    if not np.array_equal(np.isnan(found), nan):
        return False
    return not wrong_rows(np.where(nan, 0, found), np.where(nan, 0, expected)).size


def wrong_rows(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The rows whose error is above LIMIT, or which are not finite. The rows of a vector are its numbers."""
    rows = len(expected)
    if expected.ndim == 1 and np.isfinite(found).all():  # one relative error for the whole vector
        close = np.abs(found - expected) <= LIMIT * np.abs(expected).max()
        return np.flatnonzero(~close)
    errors = compare_rows(found.reshape(rows, -1), expected.reshape(rows, -1))["relative"]
    return np.flatnonzero(~(errors <= LIMIT))


def no_array(found: Any, expected: np.ndarray) -> str | None:
    """What is wrong with the type or the shape of a result; None if nothing."""
    if not isinstance(found, np.ndarray):
        return f"it returns a {type(found).__name__}; expected an array of shape {expected.shape}"
    if found.shape != expected.shape:
        turned = "; it is transposed" if found.shape == expected.shape[::-1] else ""
        return f"shape is {found.shape}, expected {expected.shape}{turned}"
    if found.dtype.kind not in "fiu":
        return f"its numbers are {found.dtype}; expected float64"
    return None


def difference(found: np.ndarray, expected: np.ndarray, hint: str) -> str:
    """Two arrays of one shape that differ -> where, and by what."""
    if not np.isfinite(found).all():
        return not_finite(found)
    if (factor := constant(found, expected)) is not None:
        return by_factor(factor, expected)
    if found.ndim == 2 and found.shape[0] == found.shape[1] and same(found.T, expected):
        return f"it is transposed: {hint}"
    wrong = wrong_rows(found, expected)
    return in_vector(found, expected, wrong, hint) if expected.ndim == 1 else where(found, expected, wrong, hint)


def not_finite(found: np.ndarray) -> str:
    """Where the numbers are that are none."""
    bad = ~np.isfinite(found)
    first, count = np.argwhere(bad)[0].tolist(), int(bad.sum())
    kind = "NaN" if np.isnan(found[bad]).any() else "infinity"
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    which = "every row" if len(rows) == len(bad) > 1 else f"row {', '.join(map(str, rows[:4]))}"
    return (
        f"{kind} at {first}, and {count} of {bad.size} numbers in all, in {which}: "
        "look for 0 / 0, for the root of a negative number, and for exp of a large one"
    )


def constant(found: np.ndarray, expected: np.ndarray) -> float | None:
    """The factor between two arrays, if it is the same everywhere."""
    top = np.abs(expected).argmax()
    factor = float(found.flat[top] / expected.flat[top]) if expected.flat[top] else 0.0
    return factor if factor and not wrong_rows(found, factor * expected).size else None


def by_factor(factor: float, expected: np.ndarray) -> str:
    if abs(factor + 1) < LIMIT:
        return "every entry has the wrong sign"
    n = expected.shape[-1]
    reasons = {np.sqrt(n): f"sqrt({n})", 1 / np.sqrt(n): f"1 / sqrt({n})", n: str(n), 1 / n: f"1 / {n}"}
    named = [f", which is {text}" for value, text in reasons.items() if abs(factor / value - 1) < LIMIT and n > 1]
    size = "too large" if abs(factor) > 1 else "too small"
    reason = named[0] if named else ""
    return f"every entry is {size} by the same factor {factor:.4g}{reason}: look at what it is divided by"


def where(found: np.ndarray, expected: np.ndarray, wrong: np.ndarray, hint: str) -> str:
    """The first wrong position, and what is right."""
    half = expected.shape[-1] // 2
    parts = {"first": slice(None, half), "second": slice(half, None)}
    halves = [name for name, cut in parts.items() if half and not wrong_rows(found[..., cut], expected[..., cut]).size]
    if halves:
        return f"the {halves[0]} half of the channels is right, and the other is not: {hint}"
    if listed := place(wrong, len(expected)):
        return f"{listed}: {hint}"
    factors = [constant(*pair) for pair in zip(found, expected)]
    if all(factors):
        some = ", ".join(f"{factor:.4g}" for factor in factors[:4] if factor)
        return f"every row is the right one times a factor of its own ({some}, ...): {hint}"
    return f"differs at every position: {hint}"


def place(wrong: np.ndarray, rows: int) -> str:
    """The first wrong position, and the right ones; empty if all are wrong."""
    first, right = wrong[0], rows - len(wrong)
    if not right:
        return ""
    if right == 1:
        (only,) = set(range(rows)) - set(wrong.tolist())
        return f"first differs at position {first}; position {only} is right"
    listed = f"positions 0 to {first - 1} are right" if right == first else f"{right} of {rows} positions are right"
    return f"first differs at position {first}; {listed}"


def in_vector(found: np.ndarray, expected: np.ndarray, wrong: np.ndarray, hint: str) -> str:
    """The first wrong number of a vector, and its sum."""
    i = wrong[0]
    return (
        f"{len(wrong)} of {len(expected)} numbers are wrong: [{i}] is {found[i]:.4g}, expected {expected[i]:.4g}; "
        f"the sum is {found.sum():.4g}, expected {expected.sum():.4g}: {hint}"
    )
