"""A new thread for each piece of work.

A pool's threads would live on, and glibc keeps for each what it has freed, up to 250 KB that no other thread may use:
with a thread a request, and 48 of them, a busy server still grows by that after ten minutes.
"""

import asyncio
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_new_thread(function: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
    """What the function returns or raises, to be awaited. Who stops waiting does not stop the thread."""
    future: Future[Any] = Future()
    start_new_thread(_work, (future, function, args))  # `Thread.start` would wait until it runs, and the loop with it
    return asyncio.wrap_future(future)


def _work(future: "Future[Any]", function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        if future.set_running_or_notify_cancel():
            future.set_result(function(*args))
    except BaseException as error:
        future.set_exception(error)
    finally:
        del future  # an error knows this frame, and would be known by it: a circle of references
