"""Lets threads share one engine: one thread at a time runs a step, which serves the requests of all threads."""

import threading
from collections.abc import Callable


class Turns:
    """A lock that a thread stops waiting for as soon as another thread's step has produced its result."""

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self._holder: int | None = None  # identifier of the thread whose turn it is
        self._refusal: Exception | None = None

    def run(self, work: Callable[[], object], ready: Callable[[], bool] = lambda: False) -> None:
        """Wait while another thread works, then call `work`. If `ready()` is true after a wait, return instead."""
        me = threading.get_ident()
        with self._ended:
            while self._holder not in (None, me):  # it is still `me` if Ctrl-C interrupted this thread's last call
                self._ended.wait()
                if ready():
                    return
            if self._refusal:
                raise self._refusal
            self._holder = me
        try:
            work()
        finally:
            with self._ended:
                self._holder = None
                self._ended.notify_all()

    def after_fork(self, refusal: Exception | None) -> None:
        """Reset the lock in a forked child, where the thread that held it does not exist.

        refusal: raised by every later `run`, if the engine cannot work in the child.
        """
        self._ended = threading.Condition()
        if self._holder != threading.get_ident():
            self._holder = None
        self._refusal = refusal
