"""Searches the number in a fault, such as theta: a grid, then Gauss-Newton steps, then the roundest number as near."""

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from llama3.parity.faults import Number
from llama3.parity.planted import Fault

STEPS = 12  # Gauss-Newton steps; each about doubles the number of right digits
# A number of fewer digits is taken if the distance grows by no more than this. It is then at most 0.2 of a limit away,
# where the limit is the largest change of the number that rounding can imitate: see `docs/faults.md`.
ROUNDER = 1.02
FIRST_ROWS = 32  # far positions turn by many angles between two points of the grid, so the search begins with near ones


def search(number: Number, errors: Callable[[Fault], Array], length: int) -> tuple[Fault, float]:
    """The best fault of this kind and its distance, the root mean square of the rows of `errors(fault)`.

    length: the number of these rows.
    """
    rows = FIRST_ROWS

    def at(u: float) -> Array:
        return errors(number.make(float(np.exp(u)) if number.log else u))[:rows]

    points = number.grid if number.start is None else np.append(number.grid, number.start)  # (points,)
    points = np.log(points) if number.log else points  # (points,)
    step = float(np.abs(np.diff(points[: len(number.grid)])).mean())
    distances = np.array([distance(at(u)) for u in points])  # (points,)
    u = float(points[np.argmin(distances)])
    while True:
        u, smallest = _gauss_newton(at, u, distance(at(u)), step)
        if rows >= length:
            break
        rows, step = 4 * rows, step / 4
    value = float(np.exp(u)) if number.log else u
    for digits in (1, 2, 3, 4, 5, 6):
        rounder = float(f"{value:.{digits}g}")
        d = distance(errors(number.make(rounder)))
        if d <= smallest * ROUNDER:
            return number.make(rounder), d
    return number.make(value), smallest


def distance(errors: Array) -> float:
    """Root mean square over the rows; infinite if anything is not finite, or without any row."""
    if not len(errors):
        return np.inf
    d = float(np.sqrt(np.mean(np.sum(errors**2, axis=1))))
    return d if np.isfinite(d) else np.inf


def _gauss_newton(at: Callable[[float], Array], u: float, smallest: float, step: float) -> tuple[float, float]:
    """Follow the slope of the errors to the nearest minimum."""
    h = step * 1e-4
    for _ in range(STEPS if np.isfinite(smallest) else 0):
        errors = at(u)
        slope = (at(u + h) - errors) / h
        move = -float(np.sum(slope * errors) / max(np.sum(slope**2), 1e-300))
        move = float(np.clip(move, -step, step))
        for _ in range(4):
            if (d := distance(at(u + move))) < smallest:
                break
            move /= 4
        else:
            return u, smallest
        gain, u, smallest = smallest - d, u + move, d
        if gain < 1e-3 * smallest:
            return u, smallest
        h = max(min(h, abs(move) * 1e-2), step * 1e-7)
    return u, smallest
