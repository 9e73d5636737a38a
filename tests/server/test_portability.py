"""`serve` starts where parts of POSIX are missing, as on Windows."""

import signal

import pytest

pytest.importorskip("uvicorn")  # the extra `server`

from tests.server.running import SHORT, RunningServer

LIKE_WINDOWS = """
import asyncio, ctypes, os, sys

class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **settings):
        if name is None and sys._getframe(1).f_globals["__name__"].startswith("llama3"):
            raise TypeError("bad argument type for built-in operation")  # what Windows raises
        super().__init__(name, *args, **settings)

def missing(*args, **settings):
    raise NotImplementedError

ctypes.CDLL = CDLL
for module in ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "readline"):
    sys.modules[module] = None
for name in ("sched_getaffinity", "sched_setaffinity", "fork", "register_at_fork", "sysconf", "getloadavg", "geteuid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("add_signal_handler", "remove_signal_handler", "add_reader", "add_writer"):
    setattr(asyncio.SelectorEventLoop, name, missing)
"""


def test_serve_starts_answers_and_stops_without_what_windows_lacks() -> None:
    with RunningServer(first=LIKE_WINDOWS) as running:
        assert running.post(SHORT)[0] == 200
        assert running.get("/").startswith(b"HTTP/1.1 200")
        assert b"content-type: text/javascript" in running.get("/static/chat.js")
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=60)
        assert running.process.stderr and running.process.stderr.read() == ""
