"""Grades `top_p` (page 9)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import numpy as np

from llama3 import plain
from llama3.sampling_params import SamplingParams
from llama3.tour.exercises.describe import LIMIT
from llama3.tour.exercises.part import Part, draw

Array = np.ndarray
Filter = Callable[[Array, float], Array]


def right(probabilities: Array, p: float) -> Array:
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities)  # (vocab_size,)
    ids, weights = plain.survivors(logits, SamplingParams(temperature=1, top_p=p))
    return spread(len(probabilities), ids, weights)


def spread(size: int, ids: Array, weights: Array) -> Array:
    """Weights of some ids -> probabilities of all."""
    found = np.zeros(size)  # (vocab_size,)
    found[ids] = weights / weights.sum()
    return found


def by(choose: Callable[[Array, float], Array]) -> Filter:
    """top_p with another choice of ids, from the ids by falling probability."""
    return lambda x, p: spread(len(x), choose(x, p), x[choose(x, p)])


def order(x: Array) -> Array:
    return np.argsort(-x, kind="stable")


def count(x: Array, p: float) -> int:
    """How many tokens come before the one that crosses p."""
    return int(np.searchsorted(np.cumsum(x[order(x)]), p))


def ascending(x: Array, p: float) -> Array:
    up = np.argsort(x, kind="stable")
    return up[: np.searchsorted(np.cumsum(x[up]), p) + 1]


def highest(x: Array) -> Array:
    """As `order`, but of equal tokens the highest id first."""
    return np.argsort(x, kind="stable")[::-1]


MISTAKES: dict[str, Filter] = {
    "the token that crosses p is left out: it still belongs to the chosen ones": by(
        lambda x, p: order(x)[: count(x, p)]
    ),
    "it starts from the least likely token: sort by falling probability": by(ascending),
    "the rest is not divided by its sum: the result must sum to 1": lambda x, p: np.where(right(x, p) > 0, x, 0),
    "it keeps one token too many: stop with the first one whose sum reaches p": by(
        lambda x, p: order(x)[: count(x, p) + 2]
    ),
    "it adds the probabilities in the order of ids: sort by falling probability first": (
        by(lambda x, p: np.arange(len(x))[: np.searchsorted(np.cumsum(x), p) + 1])
    ),
    "it keeps the tokens that are more likely than p, each by itself: add the probabilities up": (
        by(lambda x, p: np.flatnonzero(x >= p))
    ),
    "it keeps the tokens that are more likely than 1 - p, each by itself: add the probabilities up": (
        by(lambda x, p: np.flatnonzero(x >= 1 - p))
    ),
    "it keeps what p should remove: the tokens after the crossing one": by(lambda x, p: order(x)[count(x, p) + 1 :]),
    "the result is in the order of the sorted tokens: put each probability back to its token's id": (
        lambda x, p: right(x, p)[order(x)]
    ),
    "of tokens with equal probability it keeps the highest ids: keep the lowest (argsort of -probabilities, stable)": (
        by(lambda x, p: highest(x)[: count(x, p) + 1])
    ),
    "nothing is removed": lambda x, p: x,
}


def probabilities(size: int, spread: float) -> Array:
    return plain.softmax(spread * draw(size))


def probe(function: Filter, given: tuple[Array, float], found: Array) -> str | None:
    """Does it sum to 1, and are as many tokens left as should be?"""
    if not np.isfinite(found).all():
        return None
    if abs(found.sum() - 1) > LIMIT:
        return f"the result sums to {found.sum():.4g}, expected 1"
    left, expected = (int(np.count_nonzero(y)) for y in (found, right(*given)))
    if left != expected:
        return f"{left} tokens are left, expected {expected}: look at where the sum of probabilities reaches p"
    return None


PARTS = [
    Part(
        "top_p",
        right,
        {
            "12 tokens, p = 0.8": (probabilities(12, 1.0), 0.8),
            "12 tokens, p = 0.3": (probabilities(12, 0.7), 0.3),
            "a token of probability 0.9, p = 0.5": (np.array([0.04, 0.9, 0.05, 0.01]), 0.5),
            "5 tokens of equal probability, p = 0.5": (np.full(5, 0.2), 0.5),
            "1,000 tokens, p = 0.95": (probabilities(1000, 2.0), 0.95),
        },
        MISTAKES,
        probe=probe,
        hint="count how many tokens are left, and compare with what p asks for",
    )
]


def install(functions: dict[str, Callable]) -> AbstractContextManager:
    """Let plain.sample use the reader's function."""

    def survivors(logits: Array, params: SamplingParams) -> tuple[Array, Array]:
        kept = functions["top_p"](plain.softmax(logits / params.temperature), params.top_p)
        ids = np.flatnonzero(kept)  # (n,)
        return ids, kept[ids]

    return patch.object(plain, "survivors", survivors)
