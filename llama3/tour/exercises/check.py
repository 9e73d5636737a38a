"""Runs a reader's file in a process of its own, so that nothing in it can harm or hold up the command line."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import llama3
from llama3.errors import RequestError
from llama3.tour.exercises.catalogue import Exercise

SECONDS = 20.0  # for the reader's file; all of it takes about a second
LATER = 10.0  # seconds until the process is ended from outside, if its own watch could not


@dataclass(frozen=True)
class Result:
    """right: everything is. lines: (mark, text); the mark is "right", "wrong", "error" or, for a remark, empty."""

    right: bool
    lines: list[tuple[str, str]]


def check(exercise: Exercise, file: Path) -> Result:
    """Grade a file. Raises RequestError if there is no such file, or if it lacks a function of the exercise."""
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        raise RequestError(f"{file} {found}; write {exercise.file} with: llama3 tour start {exercise.page}")
    if not os.access(file, os.R_OK):
        raise RequestError(f"{file} cannot be read")
    package = str(Path(llama3.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "llama3.tour.exercises.worker", exercise.name, str(file), str(SECONDS)]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    try:
        ran = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=SECONDS + LATER
        )
    except subprocess.TimeoutExpired:
        return Result(False, [("error", f"{file.name}: still running after {SECONDS:g} seconds")])
    if not ran.stdout.strip():
        return Result(False, [("error", f"{file.name}: it ended Python (exit code {ran.returncode})")])
    report = json.loads(ran.stdout)
    if report["refused"]:
        raise RequestError(report["refused"])
    return Result(report["right"], [(mark, text) for mark, text in report["lines"]])
