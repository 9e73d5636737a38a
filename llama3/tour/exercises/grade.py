"""Grades a reader's file: the program that `check.py` starts. `python -m llama3.tour.exercises.grade NAME FILE SECONDS`

It writes one line of JSON to standard output: {"refused": text or null, "right": bool, "lines": [[mark, text], ...]}.
What the reader's file prints goes to standard error. A thread ends the program when the time is up, whatever the
file does.
"""

import inspect
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from llama3.tour.exercises import catalogue
from llama3.tour.exercises.demo import in_the_demo
from llama3.tour.exercises.describe import difference, no_array, place, same, wrong_rows
from llama3.tour.exercises.part import Part

Line = tuple[str, str]  # ("right", "wrong", "error" or "", text)


class Reader:
    """The reader's file: what it defines, and where in it something went wrong."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.module = types.ModuleType(f"exercise_{path.stem}")  # a file may be called numpy.py
        self.module.__file__ = str(self.path)

    def run(self) -> None:
        """Run the file as a module. Its neighbours can be imported."""
        sys.path.append(str(self.path.parent))
        sys.modules[self.module.__name__] = self.module
        exec(compile(self.path.read_bytes(), self.path, "exec"), vars(self.module))

    def line(self, frame: FrameType | None) -> str:
        """ "rotate.py, line 12" for the innermost frame in the file; "" if there is none."""
        while frame is not None and frame.f_code.co_filename != str(self.path):
            frame = frame.f_back
        return "" if frame is None else f"{self.path.name}, line {frame.f_lineno}"

    def error(self, error: BaseException) -> str:
        """An exception in one line, with the reader's own line number."""
        text = " ".join(str(error).split())
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            return f"{self.path.name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
        place, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(self.path):
                place = f"{self.path.name}, line {trace.tb_lineno}"
            trace = trace.tb_next
        if isinstance(error, NotImplementedError) and not text:
            return f"{place or self.path.name}: not written yet: replace `raise NotImplementedError`"
        return f"{place or self.path.name}: {type(error).__name__}" + (f": {text}" if text else "")


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
            return (
                "wrong",
                f"{part.name} on {name}: it changed its input; compute a new array instead (no +=, no x[...] =)",
            )
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


def grade(exercise: catalogue.Exercise, reader: Reader) -> Iterator[Line]:
    """Run the file, each of its functions, and the demo with them."""
    try:
        reader.run()
    except BaseException as error:
        yield "error", reader.error(error)
        return
    functions: dict[str, Callable] = vars(reader.module)
    for name in exercise.functions:
        if not callable(functions.get(name)):
            raise LookupError(
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


def watch(reader: Reader, seconds: float, write: Callable[..., None]) -> None:
    """End the program after `seconds` and say where it was then."""
    main = threading.main_thread().ident

    def end() -> NoReturn:
        time.sleep(seconds)
        place = reader.line(sys._current_frames().get(main or 0)) or reader.path.name
        write(
            None, [("wrong", f"{place}: still running after {seconds:g} seconds: is there a loop that does not end?")]
        )
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


def main() -> None:
    name, file, seconds = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # what the reader's file prints is not part of the result
    lock, lines = threading.Lock(), list[Line]()

    def write(refused: str | None, more: list[Line]) -> None:
        with lock:
            everything = [*lines, *more]
            right = refused is None and all(mark in ("right", "") for mark, _ in everything)
            os.write(out, json.dumps({"refused": refused, "right": right, "lines": everything}).encode() + b"\n")
            os.close(out)
            os._exit(0)

    reader = Reader(Path(file))
    watch(reader, float(seconds), write)
    try:
        for line in grade(catalogue.find(name), reader):
            lines.append(line)
    except LookupError as error:
        write(str(error), [])
    write(None, [])


if __name__ == "__main__":
    main()
