"""Grades `rope_angles` and `rotate` (page 5)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest.mock import patch

import numpy as np

from llama3 import plain
from llama3.config import ModelConfig
from llama3.tour.exercises.describe import LIMIT, place, same
from llama3.tour.exercises.part import Part, draw

Array = np.ndarray
SHAPE = ModelConfig(dim=64, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, vocab_size=50)


def frequencies(exponent: Callable[[Array, ModelConfig], Array]) -> Callable[[Array, ModelConfig], Array]:
    """rope_angles with another exponent of theta, a function of i = 0, 1, ... and the configuration."""
    return lambda positions, c: np.outer(positions, c.rope_theta ** exponent(np.arange(c.head_dim // 2), c))


ANGLE_MISTAKES: dict[str, Callable[[Array, ModelConfig], Array]] = {
    "positions are counted from 1: the first is 0, and its angles are 0": (
        lambda positions, c: plain.rope_angles(positions + 1, c)
    ),
    "the exponent is -i / head_dim; it lacks the factor 2": frequencies(lambda i, c: -i / c.head_dim),
    "the exponent is positive: later pairs must turn more slowly, theta ** (-2 i / head_dim)": (
        frequencies(lambda i, c: 2 * i / c.head_dim)
    ),
    "the exponent is divided by dim, the width of all heads: divide by head_dim": (
        frequencies(lambda i, c: -2 * i / c.dim)
    ),
    "the exponent is -4 i / head_dim, twice too large: arange(0, head_dim, 2) is 2 i already": frequencies(
        lambda i, c: -4 * i / c.head_dim
    ),
    "i is counted from 1: the first pair is 0 and turns by 1 radian a position": (
        frequencies(lambda i, c: -2 * (i + 1) / c.head_dim)
    ),
    "theta is 10,000, as in Llama 2: use c.rope_theta": (
        lambda positions, c: plain.rope_angles(positions, replace(c, rope_theta=1e4))
    ),
    "the pairs are in reverse order: pair 0 turns fastest": lambda positions, c: plain.rope_angles(positions, c)[
        :, ::-1
    ],
    "the angles are negative: a positive position gives a positive angle": (
        lambda positions, c: -plain.rope_angles(positions, c)
    ),
    "these are degrees: the angles are in radians": lambda positions, c: np.degrees(plain.rope_angles(positions, c)),
}


def turn(x: Array, cos: Array, sin: Array) -> Array:
    """plain.rotate with any cos and sin of shape (T, heads or 1, head_dim / 2)."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def adjacent(x: Array, angle: Array) -> Array:
    """Channels 2 i and 2 i + 1 are a pair, as in Meta's own code."""
    a, b, cos, sin = x[..., ::2], x[..., 1::2], np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def adjacent_in(x: Array, angle: Array) -> Array:
    """Pairs are read as neighbours and written as halves."""
    return plain.rotate(np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1), angle)


def first_half(x: Array, angle: Array) -> Array:
    return np.concatenate([plain.rotate(x, angle)[..., : x.shape[-1] // 2], np.split(x, 2, axis=-1)[1]], axis=-1)


def second_half(x: Array, angle: Array) -> Array:
    return np.concatenate([np.split(x, 2, axis=-1)[0], plain.rotate(x, angle)[..., x.shape[-1] // 2 :]], axis=-1)


def same_sign(x: Array, angle: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([a * cos + b * sin, a * sin + b * cos], axis=-1)


def second_minus(x: Array, angle: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([a * cos - b * sin, a * sin - b * cos], axis=-1)


def overwritten(x: Array, angle: Array) -> Array:
    """b' is computed from the new a."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a = a * cos - b * sin
    return np.concatenate([a, a * sin + b * cos], axis=-1)


def swapped_halves(x: Array, angle: Array) -> Array:
    return np.concatenate(np.split(plain.rotate(x, angle), 2, axis=-1)[::-1], axis=-1)


ROTATION_MISTAKES: dict[str, Callable[[Array, Array], Array]] = {
    "the pairs are neighbours, channels 2 i and 2 i + 1: here channels i and i + head_dim / 2 are a pair": adjacent,
    "the pairs are read as neighbours and written as halves: channels i and i + head_dim / 2 are a pair": adjacent_in,
    "it turns the other way: the sign of the angle, or of both sines, is wrong": lambda x, angle: plain.rotate(
        x, -angle
    ),
    "the second half is not rotated: b' = a sin + b cos is missing": first_half,
    "the first half is not rotated: a' = a cos - b sin is missing": second_half,
    "cos and sin are swapped": lambda x, angle: turn(x, np.sin(angle)[:, None], np.cos(angle)[:, None]),
    "a' = a cos + b sin: the sign of b sin is wrong, so this is no rotation": same_sign,
    "b' = a sin - b cos: the sign of b cos is wrong, so this is no rotation": second_minus,
    "b' is computed from the new a: keep the old a until both are done": overwritten,
    "the two halves of the result are swapped: a' comes first": swapped_halves,
    "head j is turned by the angle of position j: cos and sin need an axis for the heads, [:, None]": (
        lambda x, angle: turn(x, np.cos(angle), np.sin(angle))
    ),
    "nothing is rotated: it returns x": lambda x, angle: x,
}


def probe(function: Callable[[Array, Array], Array], given: tuple[Array, Array], found: Array) -> str | None:
    """Does each pair keep its length?"""
    x, expected = given[0], plain.rotate(*given)
    if any(same(a, b) for a, b in zip(np.split(found, 2, axis=-1), np.split(expected, 2, axis=-1))):
        return None  # one half is right: the report says which
    before, after = (np.hypot(*np.split(y, 2, axis=-1)) for y in (x, found))  # (T, heads, head_dim / 2)
    wrong = np.argwhere(~(np.abs(after - before) <= LIMIT * before))
    if not np.isfinite(found).all() or not len(wrong) or len({i for _, _, i in wrong}) < 2:
        return None
    t, j, i = wrong[0]
    listed = place(np.unique(wrong[:, 0]), len(x)) or "differs at every position"
    lengths = f"{after[t, j, i]:.4g}, and had {before[t, j, i]:.4g}"
    return f"{listed}: look at the rotation. Pair {i} of head {j} there has length {lengths}: a rotation keeps it"


POSITIONS = np.arange(6)
PARTS = [
    Part(
        "rope_angles",
        plain.rope_angles,
        {
            "positions 0 to 5, head_dim 16": (POSITIONS, SHAPE),
            "positions 7, 8, 100, head_dim 16": (np.array([7, 8, 100]), SHAPE),
            "positions 0 to 5, theta 10,000": (POSITIONS, replace(SHAPE, rope_theta=1e4)),
        },
        ANGLE_MISTAKES,
        hint="look at the exponent of theta",
    ),
    Part(
        "rotate",
        plain.rotate,
        {
            "6 positions, 4 heads, head_dim 16": (draw(6, 4, 16), plain.rope_angles(POSITIONS, SHAPE)),
            "as many positions as heads": (draw(6, 6, 16), plain.rope_angles(POSITIONS + 3, SHAPE)),
        },
        ROTATION_MISTAKES,
        probe=probe,
        hint="look at the rotation",
    ),
]


def install(functions: dict[str, Callable]) -> AbstractContextManager:
    """Let plain.forward use the reader's functions."""
    return patch.multiple(plain, rope_angles=functions["rope_angles"], rotate=functions["rotate"])
