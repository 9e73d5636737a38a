"""Grades a reader's functions, on small inputs and inside the demo. `worker.py` does so in a process of its own."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from importlib import import_module
from typing import Any

import numpy as np

from llama3.errors import RequestError
from llama3.tour.exercises.catalogue import Exercise
from llama3.tour.exercises.demo import in_the_demo
from llama3.tour.exercises.describe import difference, no_array, place, same, wrong_rows
from llama3.tour.exercises.part import Part
from llama3.tour.exercises.reader import Reader

Line = tuple[str, str]  # ("right", "wrong", "error" or "", text)


def grade_part(part: Part, function: Callable, reader: Reader) -> Line:
    """One function on the small inputs -> one line; the first case that is wrong decides what it says."""
    found: dict[str, Any] = {}
    for name, given in part.cases.items():
        arguments = deepcopy(given)
        try:
            with np.errstate(all="ignore"):  # the report says where a NaN is
                found[name] = function(*arguments)
        except NotImplementedError as error:
            return "error", f"{part.name}: {reader.error(error)}"
        except (Exception, SystemExit) as error:
            called = ", ".join(map(shown, inspect.signature(part.right).parameters, given))
            text = f"{part.name} on {name}: {reader.error(error)} (called with {called})"
            known = [sentence for sentence in part.mistakes if fails(part, sentence, error, given)]
            return "error", ": ".join([text, *known[:1]])
        if not all(same(now, before) for now, before in zip(arguments, given)):
            text = "it changed its input; compute a new array instead (no +=, no x[...] =)"
            return "wrong", f"{part.name} on {name}: {text}"
    for name, given in part.cases.items():
        with np.errstate(all="ignore"):
            expected = part.right(*deepcopy(given))
        if not same(found[name], expected):
            return "wrong", f"{part.name} on {name}: {explain(part, function, found, name, expected)}"
    return "right", f"{part.name} on {len(part.cases)} small inputs"


def fails(part: Part, mistake: str, error: BaseException, given: tuple[Any, ...]) -> bool:
    """Whether a known mistake raises the same error as the reader's function."""
    try:
        with np.errstate(all="ignore"):
            part.mistakes[mistake](*deepcopy(given))
    except ValueError as other:
        return str(other) == str(error)
    return False


def shown(name: str, value: Any) -> str:
    """An argument: arrays by their shape."""
    if isinstance(value, np.ndarray):
        return f"{name} {value.shape}"
    return f"{name} {value!r}" if len(repr(value)) <= 30 else name


def explain(part: Part, function: Callable, found: dict[str, Any], name: str, expected: Any) -> str:
    """Why a case is wrong: the known mistake with the same results, else a property that fails, else the place."""
    if found[name] is None:
        return "it returns nothing: is a `return` missing?"
    counts = {}
    for mistake, wrong in part.mistakes.items():
        if is_result_of(wrong, part.cases[name], found[name]):
            counts[mistake] = sum(is_result_of(wrong, given, found[n]) for n, given in part.cases.items())
    if counts:
        return located(found[name], expected, max(counts, key=lambda mistake: counts[mistake]))
    if not isinstance(expected, np.ndarray):
        return located(found[name], expected, part.hint)
    if problem := no_array(found[name], expected):
        return problem
    with np.errstate(all="ignore"), suppress(Exception):  # the reader's function is called with other numbers
        if broken := part.probe(function, deepcopy(part.cases[name]), found[name]):
            return broken
    return difference(found[name], expected, part.hint)


def located(found: Any, expected: Any, mistake: str) -> str:
    """A mistake, and before it where the result differs, if that tells anything."""
    if not isinstance(expected, np.ndarray):
        return f"it returns {str(found)[:80]}, expected {expected}: {mistake}"
    if expected.ndim < 2 or not np.isfinite(found).all():
        return mistake
    listed = place(wrong_rows(found, expected), len(expected))
    return f"{listed}: {mistake}" if listed else mistake


def is_result_of(function: Callable, given: tuple[Any, ...], found: Any) -> bool:
    """Whether a known mistake gives this result. Some mistakes fit some shapes only."""
    try:
        with np.errstate(all="ignore"):
            return same(found, function(*deepcopy(given)))
    except ValueError:
        return False


def grade(exercise: Exercise, reader: Reader) -> Iterator[Line]:
    """Run the file, each of its functions, and the demo with them. Raises RequestError if it lacks a function."""
    try:
        reader.run()
    except BaseException as error:
        yield "error", reader.error(error)
        return
    functions: dict[str, Callable] = vars(reader.module)
    for name in exercise.functions:
        if not callable(functions.get(name)):
            raise RequestError(
                f"{reader.path.name} has no function {name}; llama3 tour start {exercise.page} writes a stub"
            )
    grader = import_module(f"llama3.tour.exercises.{exercise.name}")
    lines: list[Line] = []
    for part in grader.PARTS:
        lines.append(grade_part(part, functions[part.name], reader))
        yield lines[-1]
    if any(mark == "error" for mark, _ in lines):
        return
    alone = all(mark == "right" for mark, _ in lines)
    try:
        yield from in_the_demo(exercise, grader.install(functions), alone)
    except (Exception, SystemExit) as error:
        if alone:
            yield "error", f"in the demo: {reader.error(error)}"
