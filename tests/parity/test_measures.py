"""Every measure equals its formula, computed with Python's own floats; NaN and infinity never count as agreement."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama3.parity import measures
from llama3.parity.measures import compare_logits, compare_rows

FINITE = st.floats(-100, 100, width=32)


@st.composite
def pairs(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    return draw(arrays(np.float32, shape, elements=FINITE)), draw(arrays(np.float32, shape, elements=FINITE))


@given(pairs())
def test_every_measure_is_what_its_formula_says(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """The oracle is plain arithmetic on Python's floats, element by element."""
    ours, reference = pair
    for a, b, found, distances in zip(
        ours.tolist(), reference.tolist(), compare_logits(*pair), compare_rows(*pair), strict=True
    ):
        difference = math.dist(a, b)
        size = math.hypot(*b)
        relative = difference / size if size else math.inf if difference else 0
        assert math.isclose(found["relative"], relative, rel_tol=1e-12, abs_tol=1e-300)
        assert found["max_abs"] == max(abs(x - y) for x, y in zip(a, b))
        p, q = softmax(b), softmax(a)
        kl = math.fsum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q) if x and y)
        assert math.isclose(found["kl"], kl, rel_tol=1e-9, abs_tol=1e-13) and found["kl"] >= 0
        best = [sorted(range(len(row)), key=lambda i: -row[i])[:5] for row in (a, b)]
        assert found["top1"] == (best[0][0] == best[1][0])
        assert found["top5"] == len(set(best[0]) & set(best[1]))
        for side, ids, row in (("ours", best[0], a), ("reference", best[1], b)):
            assert found[side].tolist() == ids + [-1] * (5 - len(ids))
            assert found[side + "_logits"].tolist()[: len(ids)] == [row[i] for i in ids]
        assert (distances["relative"], distances["max_abs"]) == (found["relative"], found["max_abs"])


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(x - max(row)) for x in row]
    return [x / math.fsum(e) for x in e]


@pytest.mark.parametrize("side", [0, 1], ids=["ours", "reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_row_and_no_other(side: int, value: float) -> None:
    pair = [np.arange(24, dtype=np.float32).reshape(3, 8) for _ in range(2)]
    pair[side][1, 7] = value
    found = compare_logits(*pair)
    for name in ("relative", "max_abs", "kl"):
        assert np.isnan(found[name]).tolist() == [False, True, False]
    assert found["top1"].tolist() == [True, False, True] and found["top5"].tolist() == [5, 0, 5]
    assert np.isnan(compare_rows(*pair)["relative"]).tolist() == [False, True, False]


def test_the_same_infinity_or_nan_on_both_sides_is_no_agreement() -> None:
    for value in (np.nan, np.inf):
        row = np.array([[1, value, 2]], np.float32)
        assert np.isnan(compare_logits(row, row)["relative"]).all() and not compare_logits(row, row)["top1"].any()


def test_the_largest_float32_do_not_overflow() -> None:
    top = float(np.finfo(np.float32).max)
    found = compare_logits(np.full((1, 6), -top, np.float32), np.full((1, 6), top, np.float32))
    assert found["relative"] == 2 and found["max_abs"] == 2 * top


def test_rows_are_the_same_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    a, b = random.standard_normal((2, 10, 50)).astype(np.float32)
    whole = compare_logits(a, b)
    monkeypatch.setattr(measures, "BLOCK_BYTES", 3 * 50 * 8)
    assert len(measures._blocks(a)) == 4
    assert compare_logits(a, b).tobytes() == whole.tobytes()


def test_only_a_block_is_converted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real vocabulary, the logits of 8,192 tokens take 4 GB on each side: too much to convert at once."""
    monkeypatch.setattr(measures, "BLOCK_BYTES", 1 << 16)
    a = np.random.RandomState(0).standard_normal((1000, 1000)).astype(np.float32)  # 8 MB in float64
    tracemalloc.start()
    compare_logits(a, a)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
