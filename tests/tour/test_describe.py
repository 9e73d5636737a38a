"""What is said of a result that no known mistake explains: where it differs from the right one, and by what."""

import numpy as np
import pytest

from llama3.tour.exercises.describe import difference, no_array, same
from llama3.tour.exercises.part import draw

RIGHT = draw(5, 4, 6)
SQUARE = draw(6, 6)


def changed(x: np.ndarray, *where: tuple, value: float | None = None) -> np.ndarray:
    """A copy with other numbers in some places."""
    x = x.copy()
    for place in where:
        x[place] = x[place] + 1 if value is None else value
    return x


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        (5.66 * RIGHT, RIGHT, "every entry is too large by the same factor 5.66: look at what it is divided by"),
        (np.sqrt(6) * RIGHT, RIGHT, "too large by the same factor 2.449, which is sqrt(6)"),
        (RIGHT / 6, RIGHT, "too small by the same factor 0.1667, which is 1 / 6"),
        (-RIGHT, RIGHT, "every entry has the wrong sign"),
        (np.arange(2, 7)[:, None, None] * RIGHT, RIGHT, "a factor of its own (2, 3, 4, 5, ...)"),
        (changed(RIGHT, np.s_[1:]), RIGHT, "first differs at position 1; position 0 is right: HINT"),
        (changed(RIGHT, np.s_[3:]), RIGHT, "first differs at position 3; positions 0 to 2 are right: HINT"),
        (changed(RIGHT, np.s_[1], np.s_[3]), RIGHT, "first differs at position 1; 3 of 5 positions are right: HINT"),
        (changed(RIGHT, np.s_[:4]), RIGHT, "first differs at position 0; position 4 is right: HINT"),
        (changed(RIGHT, np.s_[:]), RIGHT, "differs at every position: HINT"),
        (changed(RIGHT, np.s_[..., 3:]), RIGHT, "the first half of the channels is right, and the other is not: HINT"),
        (changed(RIGHT, np.s_[..., :2]), RIGHT, "the second half of the channels is right"),
        (SQUARE.T, SQUARE, "it is transposed"),
        (
            changed(RIGHT, np.s_[2, 1, 3], value=np.nan),
            RIGHT,
            "NaN at [2, 1, 3], and 1 of 120 numbers in all, in row 2",
        ),
        (
            changed(RIGHT, np.s_[:], value=np.inf),
            RIGHT,
            "infinity at [0, 0, 0], and 120 of 120 numbers in all, in every",
        ),
        (changed(SQUARE[0], np.s_[2]), SQUARE[0], "1 of 6 numbers are wrong: [2] is"),
    ],
)
def test_a_difference_is_located(found: np.ndarray, expected: np.ndarray, says: str):
    assert not same(found, expected)
    assert says in difference(found, expected, "HINT")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([1.0], "it returns a list; expected an array of shape (6, 6)"),
        (1.0, "it returns a float"),
        (np.ones((6, 5)), "shape is (6, 5), expected (6, 6)"),
        (np.ones((6, 6), complex), "its numbers are complex128"),
        (np.ones((6, 6), bool), "its numbers are bool"),
        (SQUARE, None),
    ],
)
def test_what_is_no_such_array_is_said(found: object, says: str | None):
    problem = no_array(found, SQUARE)
    assert problem is None if says is None else says in (problem or "")


def test_float32_counts_as_right_and_nan_equals_nan():
    assert same(RIGHT.astype(np.float32), RIGHT)
    assert same(changed(RIGHT, np.s_[1], value=np.nan), changed(RIGHT, np.s_[1], value=np.nan))
    assert not same(changed(RIGHT, np.s_[1], value=np.nan), RIGHT)
    assert same([1, 2], [1, 2]) and same(np.array([1, 2]), [1, 2]) and not same((1, 2), [1, 2])
