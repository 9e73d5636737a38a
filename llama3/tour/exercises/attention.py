"""Grades `attention` (page 6)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import numpy as np

from llama3 import plain
from llama3.tour.exercises.describe import LIMIT, wrong_rows
from llama3.tour.exercises.part import Part, draw

Array = np.ndarray
Head = Callable[[Array, Array, Array], Array]


def right(q: Array, k: Array, v: Array) -> Array:
    return plain.softmax(plain.attention_scores(q, k)) @ v


def raw(q: Array, k: Array) -> Array:
    """The scores without a mask."""
    return q @ k.T / np.sqrt(q.shape[1])


def later(x: Array, first: int = 1) -> Array:
    """True where the key is `first` or more positions after the query."""
    return np.triu(np.ones((len(x), len(x)), bool), first)


def masked(first: int) -> Head:
    return lambda q, k, v: plain.softmax(np.where(later(q, first), -np.inf, raw(q, k))) @ v


def scaled(scale: Callable[[Array], float]) -> Head:
    """Scores times another factor than 1 / sqrt(head_dim)."""
    return lambda q, k, v: plain.softmax(plain.attention_scores(q * np.sqrt(q.shape[1]) * scale(q), k)) @ v


def over_queries(q: Array, k: Array, v: Array) -> Array:
    """The softmax runs over axis 0."""
    return plain.softmax(plain.attention_scores(q, k).T).T @ v


def over_all(q: Array, k: Array, v: Array) -> Array:
    weights = np.exp(plain.attention_scores(q, k))
    return weights / weights.sum() @ v


def unsummed(q: Array, k: Array, v: Array) -> Array:
    return np.exp(plain.attention_scores(q, k)) @ v


def exp_first(scores: Array) -> Array:
    """A softmax that overflows."""
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


MISTAKES: dict[str, Head] = {
    "it attends to the future: the mask is missing, which sets the scores of later keys to -inf": lambda q, k, v: (
        plain.softmax(raw(q, k)) @ v
    ),
    "it attends to the future: each position sees one key too many. Key t is the last one that query t sees": masked(2),
    "NaN in row 0, which sees no key: the mask is off by one, and query t must see key t itself": masked(0),
    "it attends to the future: the mask is added as 0 and 1, and must be 0 and -inf": (
        lambda q, k, v: plain.softmax(raw(q, k) + ~later(q)) @ v
    ),
    "it attends to the future: the mask is added as 1 where a key is later, and must be -inf there": (
        lambda q, k, v: plain.softmax(raw(q, k) + later(q)) @ v
    ),
    "it attends to the future: later keys score 0, and exp(0) is 1; let them score -inf": (
        lambda q, k, v: plain.softmax(np.where(later(q), 0, raw(q, k))) @ v
    ),
    "the mask is upside down: each position sees itself and later ones only": (
        lambda q, k, v: plain.softmax(np.where(later(q).T, -np.inf, raw(q, k))) @ v
    ),
    "the mask comes after the softmax, so that the weights of a row do not sum to 1: mask the scores": (
        lambda q, k, v: np.where(later(q), 0, plain.softmax(raw(q, k))) @ v
    ),
    "the division by sqrt(head_dim) is missing: the scores are too large": scaled(lambda q: 1.0),
    "the scores are divided by head_dim: divide by its root": scaled(lambda q: 1 / q.shape[1]),
    "the scores are multiplied by sqrt(head_dim): divide by it": scaled(lambda q: np.sqrt(q.shape[1])),
    "the scores are divided by sqrt(T): divide by sqrt(head_dim)": scaled(lambda q: 1 / np.sqrt(len(q))),
    "the softmax runs over queries (axis 0): the weights of each query, a row, sum to 1 (axis -1)": over_queries,
    "the softmax divides by the sum of all weights: each row has a sum of its own (axis=-1, keepdims=True)": over_all,
    "the softmax does not divide by the sum: the weights of a row must sum to 1": unsummed,
    "NaN where scores are large, since exp overflows: take the largest score of a row away from that row before exp": (
        lambda q, k, v: exp_first(plain.attention_scores(q, k)) @ v
    ),
    "the weights are multiplied by k: multiply by v": lambda q, k, v: right(q, k, k),
    "q and k are swapped: rows are queries, columns are keys (q @ k.T)": lambda q, k, v: right(k, q, v),
    "k is not transposed: scores are (T, T), q @ k.T": lambda q, k, v: q @ k,
    "the softmax is missing: the scores themselves weight the values": (
        lambda q, k, v: np.where(later(q), 0, raw(q, k)) @ v
    ),
}


def probe(function: Head, given: tuple[Array, ...], found: Array) -> str | None:
    """Does a row change with later keys? Do its weights sum to 1?"""
    q, k, v = given
    if not np.isfinite(found).all():
        return None
    for t in range(1, len(q)):
        now = function(q, np.concatenate([k[:t], -k[t:]]), np.concatenate([v[:t], -v[t:]]))
        if len(changed := wrong_rows(now[:t], found[:t])):
            return f"it attends to the future: row {changed[0]} changes with the keys from {t} on: look at the mask"
    sums = function(q, k, np.ones_like(v))[:, 0]  # (T,)
    if len(wrong := np.flatnonzero(np.abs(sums - 1) > LIMIT)):
        return f"the weights of row {wrong[0]} sum to {sums[wrong[0]]:.4g}, expected 1: look at the softmax"
    return None


PARTS = [
    Part(
        "attention",
        right,
        {
            "6 positions, head_dim 16": (draw(6, 16), draw(6, 16, seed=1), draw(6, 16, seed=2)),
            "1 position": (draw(1, 16), draw(1, 16, seed=1), draw(1, 16, seed=2)),
            "scores of a thousand": (60 * draw(7, 16), 60 * draw(7, 16, seed=1), draw(7, 16, seed=2)),
        },
        MISTAKES,
        probe=probe,
        hint="look at the scores first, then at the weights",
    )
]


class Pending:
    """Stands for a head's weights in plain.forward: `weights @ v` calls the reader's function."""

    def __init__(self, function: Head, q: Array, k: Array):
        self.function, self.q, self.k = function, q, k

    def __matmul__(self, v: Array) -> Array:
        return self.function(self.q, self.k, v)


def install(functions: dict[str, Callable]) -> AbstractContextManager:
    """Let plain.forward use the reader's function: scores wait for v, and become weights @ v."""
    head = functions["attention"]
    return patch.multiple(plain, attention_scores=lambda q, k: Pending(head, q, k), softmax=lambda pending: pending)
