"""Searches the number in a fault, such as theta: a grid, then Gauss-Newton steps, then the roundest number as near."""

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from llama3.parity.faults import Number
from llama3.parity.planted import Fault

STEPS = 12  # Gauss-Newton steps; each about doubles the number of right digits
ROUNDER = 1.02  # a number of fewer digits is taken if the distance grows by no more than this


def search(number: Number, errors: Callable[[Fault], Array], right: float) -> tuple[Fault, float]:
    """The best fault of this kind and its distance, the root mean square of the rows of `errors(fault)`.

    right: the distance without a fault. If no point of the grid is nearer, the search ends there.
    """

    def at(u: float) -> Array:
        return errors(number.make(float(np.exp(u)) if number.log else u))

    grid = np.log(number.grid) if number.log else number.grid  # (points,)
    distances = np.array([distance(at(u)) for u in grid])  # (points,)
    best = int(np.nanargmin(np.where(np.isfinite(distances), distances, np.inf)))
    if not distances[best] < right:
        return number.make(float(number.grid[best])), float(distances[best])
    step = float(np.diff(grid).mean())
    u, smallest = _gauss_newton(at, float(grid[best]), float(distances[best]), step)
    value = float(np.exp(u)) if number.log else u
    for digits in (1, 2, 3, 4, 5, 6):
        rounder = float(f"{value:.{digits}g}")
        if (d := distance(errors(number.make(rounder)))) <= smallest * ROUNDER + 1e-9:
            return number.make(rounder), d
    return number.make(value), smallest


def distance(errors: Array) -> float:
    """Root mean square over the rows; infinite if anything is not finite."""
    d = float(np.sqrt(np.mean(np.sum(errors**2, axis=1))))
    return d if np.isfinite(d) else np.inf


def _gauss_newton(at: Callable[[float], Array], u: float, smallest: float, step: float) -> tuple[float, float]:
    """Follow the slope of the errors to the nearest minimum."""
    h = step * 1e-4
    for _ in range(STEPS):
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
