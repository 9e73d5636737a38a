"""`llama3 tour`: the pages of the tour, its exercises (`start` writes a stub, `check` grades it) and bug hunts."""

import argparse
import shutil
import sys
from pathlib import Path

from llama3.cli.options import Parser, output_options
from llama3.cli.terminal import VISIBLE, columns, paint, print_json, wrap
from llama3.errors import RequestError

DESCRIPTION = """\
Learn how the model works. Without an argument: list the pages of the tour and its exercises.
An exercise is a function of the model, such as RoPE on page 5. Write it yourself, and check it
inside the real model. In a hunt, one line of the demo is wrong, and you find out which. The exit
code is 3 if something is wrong with the file or with the answer.

  llama3 tour
  llama3 tour start 5              write rotate.py into this folder, to be filled in
  llama3 tour check 5 [FILE]       grade it, or another file
  llama3 tour hunt 1               find the wrong line in the demo: 1 to 4
  llama3 tour hunt 1 --answer WORD"""
COLOURS = {"right": "32", "wrong": "31", "error": "31", "": "2"}


def parser() -> Parser:
    parser = Parser("llama3 tour [start PAGE | check PAGE [FILE] | hunt N] [OPTIONS]", DESCRIPTION)
    option = parser.group("hunt")
    option("--answer", metavar="WORD", help="what is wrong, by one of the words that the hunt lists")
    output_options(parser, json="print the result of check as one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    if not args.words:
        print(contents())
        return 0
    action, *rest = args.words
    if action not in ("start", "check", "hunt") or not rest or len(rest) > (2 if action == "check" else 1):
        raise RequestError(
            f"{' '.join(args.words)!r} is not an action of the tour; expected: start PAGE, check PAGE [FILE] or hunt N"
        )
    if args.answer is not None and action != "hunt":
        raise RequestError("--answer belongs to a hunt: llama3 tour hunt 1 --answer WORD")
    if args.json and action != "check":
        raise RequestError("--json belongs to check: llama3 tour check PAGE --json")
    if action == "hunt":
        return hunt(rest[0], args.answer)
    from llama3.tour.exercises.catalogue import find, start

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
        show_lines(result.lines)
    return 0 if result.right else 3


def hunt(number: str, answer: str | None) -> int:
    """Show what a hunt's bug changes, or judge an answer."""
    from llama3.tour.exercises.hunt import SIGNS, answers, clues, find, judge

    bug = find(number)
    if answer is not None:
        right, text = judge(bug, answer)
        print(text)
        return 0 if right else 3
    expected, said = (text.translate(VISIBLE) for text in answers(bug))
    print("One line of the demo is wrong. Asked 'What is RoPE?', it says:")
    print(f"\n  {said}\n\nand it should say:\n\n  {expected}\n")
    print("Its embedding and its layer 0, beside the right ones, in the order of computation:")
    print(f"\n{columns(clues(bug))}\n")
    print(f"Which bug is it: {', '.join(SIGNS)}?\nAnswer with: llama3 tour hunt {number} --answer WORD")
    return 0


def show_lines(lines: list[tuple[str, str]]) -> None:
    """Print a report: its marks, and beside them its sentences, wrapped."""
    width = min(shutil.get_terminal_size().columns, 100) - 8
    for mark, text in lines:
        first, *more = wrap(text.translate(VISIBLE), max(width, 20)) or [""]
        print(f"{paint(mark.ljust(5), COLOURS[mark], sys.stdout)}  {first}")
        for line in more:
            print(" " * 7 + line)


def contents() -> str:
    """The pages, if the source is here, and the exercises."""
    from llama3.tour.exercises.catalogue import EXERCISES

    pages = tour_pages()
    rows = [(path.name, title(path)) for path in pages]
    listed = "The pages are in docs/tour of llama3's source."
    if pages:
        listed = f"Pages, in {pages[0].parent}:\n{columns(rows)}"
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
