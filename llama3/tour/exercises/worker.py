"""The program that `check.py` starts: `python -m llama3.tour.exercises.worker NAME FILE SECONDS`.

It writes one line of JSON to standard output: {"refused": text or null, "right": bool, "lines": [[mark, text], ...]}.
What the reader's file prints goes to standard error. A thread ends the program when the time is up, whatever the
file does.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from llama3.errors import RequestError
from llama3.tour.exercises.catalogue import find
from llama3.tour.exercises.grade import Line, grade
from llama3.tour.exercises.reader import Reader


class Report:
    """The lines so far. Whoever finishes it first, the grading or the watch, ends the program."""

    def __init__(self, out: int):
        self.out, self.lines, self.lock = out, list[Line](), threading.Lock()

    def finish(self, refused: str | None = None) -> NoReturn:
        self.lock.acquire()
        right = refused is None and all(mark in ("right", "") for mark, _ in self.lines)
        os.write(self.out, json.dumps({"refused": refused, "right": right, "lines": self.lines}).encode())
        os._exit(0)


def watch(reader: Reader, seconds: float, report: Report) -> None:
    """End the program after `seconds`, and say where it was then."""
    main = threading.get_ident()

    def end() -> NoReturn:
        time.sleep(seconds)
        at = reader.line(sys._current_frames().get(main)) or reader.path.name
        text = f"{at}: still running after {seconds:g} seconds: is there a loop that does not end?"
        report.lines.append(("error", text))
        report.finish()

    threading.Thread(target=end, daemon=True).start()


def main() -> None:
    name, file, seconds = sys.argv[1:]
    report = Report(os.dup(1))
    os.dup2(2, 1)  # what the reader's file prints is not part of the report
    reader = Reader(Path(file))
    watch(reader, float(seconds), report)
    try:
        for line in grade(find(name), reader):
            report.lines.append(line)
    except RequestError as error:
        report.finish(refused=str(error))
    report.finish()


if __name__ == "__main__":
    main()
