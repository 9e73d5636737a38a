"""Whose turn it is: threads share one engine, and one of them at a time runs a step, for the requests of all."""

import threading
from collections.abc import Callable


class Turns:
    """A lock whose waiters go on as soon as what they wait for has come, be it by another thread's step."""

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self._holder: int | None = None  # identifier of the thread whose turn it is
        self._refusal: Exception | None = None

    def run(self, work: Callable[[], object], ready: Callable[[], bool] = lambda: False) -> None:
        """Wait for the turn, then call `work`. After a wait, return without it if `ready()` is true."""
        me = threading.get_ident()
        with self._ended:
            while self._holder not in (None, me):  # `me`: Ctrl-C interrupted this thread's last turn
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
        """Begin anew in a forked child: the thread that had the turn, or the lock, is not there.

        refusal: raised at every later turn, if the engine cannot work in the child.
        """
        self._ended = threading.Condition()
        if self._holder != threading.get_ident():
            self._holder = None
        self._refusal = refusal
