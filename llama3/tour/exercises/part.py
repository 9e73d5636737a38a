"""What grades one function: its cases, the right answer to each, and mistakes whose answers are known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Part:
    """One function of an exercise.

    A mistake is a wrong function with a sentence that names it. If the reader's results are the wrong function's, the
    sentence is true: nothing is guessed.
    """

    name: str
    right: Callable[..., Any]  # from plain.py
    cases: Mapping[str, tuple[Any, ...]]  # what it is, as in "on 5 random rows" -> the arguments
    mistakes: Mapping[str, Callable[..., Any]]
    # (the reader's function, arguments, its result) -> a property that does not hold; asked if no mistake is recognised
    probe: Callable[[Callable[..., Any], tuple[Any, ...], Any], str | None] = lambda function, given, found: None
    hint: str = "look at the equation in the stub"  # where to look if no mistake is recognised


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers, float64, the same ones each time."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)
