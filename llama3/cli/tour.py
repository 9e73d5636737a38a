"""`llama3 tour`: the pages of the tour, and its exercises: `start` writes a stub, `check` grades what became of it."""

import argparse
import sys
from pathlib import Path

from llama3.cli.options import Parser, output_options
from llama3.cli.terminal import columns, paint, print_json
from llama3.errors import RequestError

DESCRIPTION = """\
Learn how the model works. Without an argument: list the pages of the tour and its exercises.
An exercise is a function of the model, such as RoPE on page 5. Write it yourself, and check it
inside the real model. The exit code of check is 3 if something is wrong.

  llama3 tour
  llama3 tour start 5              write rotate.py into this folder, to be filled in
  llama3 tour check 5 [FILE]       grade it, or another file"""
COLOURS = {"right": "32", "wrong": "31", "": "2"}


def parser() -> Parser:
    parser = Parser("llama3 tour [start PAGE | check PAGE [FILE]] [OPTIONS]", DESCRIPTION)
    output_options(parser, json="print the result of check as one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    from llama3.tour.exercises.catalogue import find, start

    if not args.words:
        print(contents())
        return 0
    action, *rest = args.words
    if action not in ("start", "check") or not rest or len(rest) > (2 if action == "check" else 1):
        raise RequestError(
            f"{' '.join(args.words)!r} is not an action of the tour; expected: start PAGE, or check PAGE [FILE]"
        )
    exercise = find(rest[0])
    if action == "start":
        path = start(exercise, Path())
        print(f"{path}: write {' and '.join(exercise.functions)}, then run: llama3 tour check {exercise.page}")
        return 0
    from llama3.tour.exercises.check import check

    result = check(exercise, Path(rest[1] if len(rest) == 2 else exercise.file))
    if args.json:
        print_json({"right": result.right, "lines": [{"mark": mark, "text": text} for mark, text in result.lines]})
    else:
        for mark, text in result.lines:
            print(f"{paint(mark.ljust(5), COLOURS[mark], sys.stdout)}  {text}")
    return 0 if result.right else 3


def contents() -> str:
    """The pages, if the source is here, and the exercises."""
    from llama3.tour.exercises.catalogue import EXERCISES

    pages = tour_pages()
    rows = [(str(path), title(path)) for path in pages]
    listed = "Pages:\n" + columns(rows) if pages else "The pages are in docs/tour of llama3's source."
    exercises = [(f"{e.page}  {e.name}", e.about) for e in EXERCISES]
    return f"{listed}\n\nExercises (llama3 tour start PAGE, then llama3 tour check PAGE):\n{columns(exercises)}"


def tour_pages() -> list[Path]:
    """The numbered pages of docs/tour in the source tree; none in an installed package."""
    from llama3.resources import resource

    try:
        folder = resource("docs", "tour")
    except FileNotFoundError:
        return []
    return sorted(path for path in folder.glob("*.md") if path.name[0].isdigit())


def title(path: Path) -> str:
    """The heading of a page."""
    with path.open(encoding="utf-8") as file:
        return next((line.lstrip("# ").strip() for line in file if line.startswith("# ")), "")
