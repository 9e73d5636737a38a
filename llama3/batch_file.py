"""The files of a batch: requests are read line by line, answers are appended, and a file of answers is continued.

Line k of the answers answers line k of the requests; empty lines do not count. So the number of whole lines says where
to go on, and nothing else is stored.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from llama3.batch_request import BEGINNINGS, Line, is_answer, may_answer
from llama3.errors import Llama3Error, RequestError
from llama3.json_text import read_json
from llama3.limits import LIMITS

CHUNK = 1 << 20  # bytes
STDOUT = "standard output"


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines that are not empty, without their newline. Of a line that is too long, one byte too many is kept."""
    most = LIMITS.body_bytes + 1
    bom = codecs.BOM_UTF8  # some editors put it in front of the first line
    while line := file.readline(most):
        part = line
        while not part.endswith(b"\n") and (part := file.readline(CHUNK)):
            pass  # the rest of a line that is too long
        line, bom = line.removeprefix(bom).rstrip(b"\r\n"), b""
        if line.strip():
            yield line


class AnswerFile:
    """A file to which answers are appended. `n` of them are in it."""

    def __init__(self, name: str, requests: Iterator[bytes] | None):
        """Open the file, or standard output for "-", and skip the requests that it answers already.

        requests: None if they cannot be read a second time; then a file that holds anything is refused. Raises
        RequestError for a file that cannot be written, and, without a change to it, for one that holds anything else
        than answers to these requests.
        """
        self.name, self.n = name, 0
        if name == "-":
            self.name, stdout = STDOUT, sys.stdout.buffer
            self.file: Any = getattr(stdout, "raw", stdout)
            return
        path = Path(name)
        try:
            regular = path.is_file() or not path.exists()
            self.file = io.FileIO(name, ("r+b" if path.exists() else "x+b") if regular else "wb")
        except OSError as error:
            raise RequestError(f"{name}: {error.strerror}") from None
        if regular:
            try:
                self._skip_answered(requests)
            except BaseException:
                self.file.close()
                raise

    def append(self, lines: Iterable[Line], most_failures: int) -> Iterator[Line]:
        """Append each answer, and pass it on once it is in the file.

        If the model fails most_failures times in a row, Llama3Error is raised, and these failures are not in the file:
        the requests are not their cause, and the next run answers them.
        """
        held: list[Line] = []  # the last answers, if the model failed
        for line in lines:
            held.append(line)
            if not line.failed:
                yield from self._write(held)
                held = []
            elif len(held) == most_failures:
                raise Llama3Error(f"the model failed {most_failures} times in a row: {line.error}; {self.go_on()}")
        yield from self._write(held)

    def go_on(self) -> str:
        """What to do after an interruption."""
        if self.name == STDOUT:
            return f"{self.n:,} answers were written"
        return f"{self.name} has {self.n:,} answers: run the same command again to go on"

    def close(self) -> None:
        if self.name != STDOUT:
            self.file.close()

    def _skip_answered(self, requests: Iterator[bytes] | None) -> None:
        lock(self.file, self.name)
        if not os.path.getsize(self.name):
            return
        if requests is None:
            raise RequestError(f"{self.name} is there already, and a pipe cannot be continued; give another file")
        self.n, size = count_answers(self.file, requests, self.name)
        self.file.truncate(size)
        self.file.seek(size)

    def _write(self, lines: list[Line]) -> Iterator[Line]:
        for line in lines:
            left = memoryview(line.text + b"\n")
            while left:
                try:
                    left = left[self.file.write(left) :]
                except BrokenPipeError:
                    raise
                except OSError as error:
                    raise Llama3Error(f"{self.name}: {error.strerror}; {self.go_on()}") from None
            self.file.flush()
            self.n += 1
            yield line


def count_answers(file: io.FileIO, requests: Iterator[bytes], name: str) -> tuple[int, int]:
    """-> (how many requests the file answers, how many bytes of it are whole lines). Skips these requests.

    Raises RequestError if the file holds anything else.
    """
    n = size = 0
    answers = io.BufferedReader(file, CHUNK)
    if not begins_like_answer(answers.peek(1)[:CHUNK]):
        raise other_file(name, 0, "is no answer of a batch")
    while line := answers.readline():
        if not line.endswith(b"\n"):
            if not is_torn_answer(line):
                raise other_file(name, n, "is no answer of a batch")
            break  # the program was killed while it wrote this answer
        request = next(requests, None)
        if request is None:
            raise other_file(name, n, f"answers a request after the last one, which is number {n}")
        if not may_answer(line, request):
            raise other_file(name, n, f"is not the answer to request {n + 1}")
        n, size = n + 1, size + len(line)
    answers.detach()
    return n, size


def begins_like_answer(line: bytes) -> bool:
    """True also for a line that was torn after a few bytes."""
    return any(line.startswith(start) or start.startswith(line) for start in BEGINNINGS)


def is_torn_answer(line: bytes) -> bool:
    """False for a request without a newline, which begins in the same way."""
    try:
        return begins_like_answer(line) and is_answer(read_json(line.decode()))
    except ValueError:
        return begins_like_answer(line)


def other_file(name: str, n: int, found: str) -> RequestError:
    return RequestError(f"{name}: line {n + 1} {found}; nothing was changed; give its own requests, or another file")


def lock(file: io.FileIO, name: str) -> None:
    """Keep other processes from appending to the file as long as it is open. Raises RequestError if one does."""
    with suppress(ImportError):  # Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"{name}: another process is writing its answers; wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks
