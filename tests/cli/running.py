"""Run the command line in three ways: inside this process, as a program, and as a program at a pseudo-terminal."""

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import pytest

PROGRAM = (sys.executable, "-m", "llama3.cli")
PATIENCE = 120  # seconds after which a program counts as stuck, even on a busy machine


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: str | bytes) -> None:
    """Make `data` the standard input of `main` in this process, as if it came from a pipe."""
    data = data.encode() if isinstance(data, str) else data
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def run(*argv: str, env: dict[str, str] | None = None, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line as a program, without standard input unless `settings` for `subprocess.run` give one."""
    settings = {"stdin": subprocess.DEVNULL} | settings
    return subprocess.run(
        [*PROGRAM, *argv], capture_output=True, env=os.environ | (env or {}), timeout=PATIENCE, **settings
    )


class Screen:
    """The program at a pseudo-terminal of 80 columns: type text, and wait for what the program shows."""

    def __init__(self, argv: Sequence[str], env: dict[str, str] | None = None, stdout: int | None = None):
        environment = os.environ | {"TERM": "xterm"} | (env or {})
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            if stdout is not None:
                os.dup2(stdout, 1)
            os.execve(sys.executable, [*PROGRAM, *argv], environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.shown = ""
        self.code: int | None = None

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.code is None:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str) -> str:
        """Wait until `text` is shown -> all that was shown since the last call, up to and including it."""
        while text not in self.shown:
            assert self.wait_for_more(), f"waited for {text!r}, and saw {self.shown!r}"
        seen, _, self.shown = self.shown.partition(text)
        return seen + text

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C once a second until `text` is shown.

        A Ctrl-C that comes just before Python waits for a key goes unnoticed until the next key.
        """
        for _ in range(PATIENCE):
            self.type("\x03")
            end = time.monotonic() + 1
            while text not in self.shown and time.monotonic() < end:
                self.wait_for_more(0.2)
            if text in self.shown:
                break
        self.wait_for(text)

    def wait_for_more(self, seconds: float = PATIENCE) -> str:
        """Read more output into `shown` -> the new part; empty at the end of the output or after `seconds`."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        text = self._read().decode(errors="replace") if ready else ""
        self.shown += text
        return text

    def wait_for_end(self) -> str:
        """Wait until the program ends and set `code`, its exit code -> the rest of the output."""
        while self.wait_for_more():
            pass
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.shown

    def _read(self) -> bytes:
        try:
            return os.read(self.fd, 65536)
        except OSError:  # how Linux reports that the other side has closed
            return b""
