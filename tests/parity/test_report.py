"""A report says exactly which limits are exceeded, and where, as a table and as JSON."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llama3.errors import RequestError
from llama3.parity import Limits, Reference, Report, compare_arrays
from tests.parity.test_reference_file import at_positions, reference


def compared(r: Reference, error: float = 0.0, position: int = 2, **limits: Any) -> Report:
    """The reference compared with itself, but with one row of its logits off by this relative error."""
    logits = r.logits.astype(np.float64)
    logits[position] *= 1 + error
    return compare_arrays(logits, r, activations=r.activations, **limits)


def test_equal_numbers_are_ok_and_say_so() -> None:
    report = compared(reference())
    assert report.ok and report.breaches == [] and report.first_activation is None
    assert str(report).endswith("equal within the limits")


@pytest.mark.parametrize(
    ("dtype", "logits", "activations"),
    [("float64", 1e-5, 1e-5), ("float32", 1e-5, 1e-5), ("float16", 9.7e-3, 3.1e-2), ("bfloat16", 7.8e-2, 2.5e-1)],
)
def test_the_default_limits_follow_the_references_dtype(dtype: str, logits: float, activations: float) -> None:
    r = reference(dtype=dtype)
    assert compared(r, 0.9 * logits).ok and not compared(r, 1.1 * logits).ok
    assert compared(r, 1.1 * logits, rtol=1.0).ok and not compared(r, 0.9 * logits, rtol=logits / 2).ok

    def ok(error: float, **limits: float) -> bool:
        off = {name: values * (1 + error) for name, values in r.activations.items()}
        return compare_arrays(r.logits, r, activations=off, **limits).ok

    assert ok(0.9 * activations) and not ok(1.1 * activations)
    assert ok(1.1 * activations, rtol=1.0) and not ok(0.9 * activations, rtol=activations / 2)


def test_a_row_beyond_the_limit_is_named() -> None:
    report = compared(reference(), 0.5, position=2)
    assert report.breaches == ["relative error of the logits over 7.8e-02 at 1 of 4 positions, first at 2"]
    text = str(report)
    assert f"DIFFERS: {report.breaches[0]}" in text
    assert "most likely at position 2, after token 6 (id: logit)" in text
    worst = report.as_dict()["worst"]
    assert worst["relative"] == {"value": pytest.approx(0.5), "position": 2}
    assert worst["nmse"] == {"value": pytest.approx(0.25), "position": 2}


def test_the_other_limits_apply_only_when_they_are_set() -> None:
    r = at_positions(reference(), 1, 3)
    logits = -r.logits  # the least likely token becomes the most likely one
    loose = compare_arrays(logits, r, rtol=100.0)
    assert loose.ok and not loose.logits["top1"].any()
    report = compare_arrays(logits, r, rtol=100.0, max_kl=1e-3, min_top1=0.95)
    assert report.breaches == [
        "KL divergence over 1.0e-03 at 2 of 2 positions, first at 1",
        "top-1 agreement is 0.00%, expected 95.00% or more",
    ]


def test_a_limit_may_be_reached_but_not_exceeded() -> None:
    r = reference()
    logits = r.logits.copy()
    logits[0] *= -1
    loose = compare_arrays(logits, r, rtol=2.0)
    worst, share = float(loose.logits["kl"].max()), 3 / 4
    assert loose.ok and loose.logits["top1"].mean() == share
    for reached in ({"max_kl": worst}, {"min_top1": share}):
        assert compare_arrays(logits, r, rtol=2.0, **reached).ok
    for passed in ({"max_kl": worst * 0.999}, {"min_top1": share + 0.001}):
        assert not compare_arrays(logits, r, rtol=2.0, **passed).ok
    assert not compare_arrays(logits, r, rtol=1.999).ok


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_a_breach_under_any_limit(bad: float) -> None:
    r = reference()
    report = compared(r, bad, rtol=1e30)
    assert report.breaches == ["our logits hold NaN or infinity at 1 of 4 positions, first at 2"]
    theirs = compare_arrays(r.logits, replace(r, logits=r.logits * np.float32([[1], [bad], [1], [1]])), rtol=1e30)
    assert theirs.breaches == ["the logits of the reference hold NaN or infinity at 1 of 4 positions, first at 1"]
    broken = {**r.activations, "layers.0": np.full_like(r.activations["layers.0"], bad)}
    report = compare_arrays(r.logits, r, activations=broken, rtol=1e30)
    assert not report.ok and report.first_activation == "layers.0"
    for found in (report, compared(replace(r, logits=np.full_like(r.logits, bad)), rtol=1e30)):
        assert not found.ok and "nan" in str(found)
        assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["ok"] is False


@pytest.mark.parametrize("name", list(reference().activations))
def test_the_first_activation_that_differs_is_named(name: str) -> None:
    r = reference()
    names = list(r.activations)
    spoiled = {n: a * (2 if names.index(n) >= names.index(name) else 1) for n, a in r.activations.items()}
    spoiled[name] = r.activations[name].copy()
    spoiled[name][1] *= 2  # from position 1 on
    report = compare_arrays(r.logits, r, activations=dict(reversed(spoiled.items())))
    assert report.first_activation == name
    assert report.breaches == [f"the first activation that differs is {name}, first at position 1 (1.0e+00)"]
    assert report.as_dict()["activations"][name]["relative"] == {"value": 1.0, "position": 1}


def test_positions_are_counted_from_the_beginning_of_the_text() -> None:
    r = at_positions(reference(), 1, 3)
    report = compare_arrays(r.logits * np.array([[1], [2]]), r, activations={"norm": r.activations["norm"] * 2})
    assert "first at 3" in report.breaches[0] and "norm, first at position 1" in report.breaches[1]
    assert report.as_dict()["positions"]["position"] == [1, 3]


def test_no_line_is_wider_than_100_columns() -> None:
    r = reference(model="m" * 300, producer="p" * 300)
    report = replace(compared(r, 0.5), ours="o" * 300, config_differences=["c" * 300])
    for text in (str(report), str(compared(r))):
        assert max(map(len, text.splitlines())) == 100


def test_texts_from_a_file_cannot_control_the_terminal() -> None:
    r = reference(model="\x1b[2J\nequal within the limits", producer="\x9b")
    text = str(compared(r, 0.5))
    assert all(c.isprintable() or c == "\n" for c in text) and len(text.splitlines()) == len(
        str(compared(reference(), 0.5)).splitlines()
    )


def test_json_holds_every_position() -> None:
    found = json.loads(json.dumps(compared(reference(), 0.5).as_dict(), allow_nan=False))
    assert all(len(values) == 4 for values in found["positions"].values())
    assert set(found["positions"]) == {"position", "relative", "nmse", "max_abs", "kl", "top1", "top5"}
    assert found["top1"] == 1.0 and found["top5"] == 1.0 and found["ok"] is False
    assert found["limits"] == {"rtol": 20 / 256, "activation_rtol": 0.25, "max_kl": None, "min_top1": None}


def test_a_vocabulary_of_fewer_than_five_can_agree_completely() -> None:
    config = replace(reference().config, vocab_size=3)
    r = reference(config=config, tokens=np.array([0, 1, 2, 0]), logits=np.eye(4, 3, dtype=np.float32) + 1)
    assert compared(r).as_dict()["top5"] == 1.0 and "-1:" not in str(compared(r, 9.0))


@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf])
@pytest.mark.parametrize("name", ["rtol", "max_kl", "min_top1"])
def test_a_limit_is_a_number_of_at_least_zero(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{name} is .*; expected a number of at least 0"):
        Limits(**{name: value})
