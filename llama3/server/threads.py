"""Run each piece of work in a new thread.

A pool would keep its threads alive, and for each thread glibc keeps up to 250 KB of the memory that it has freed, which
no other thread can use. With a pool of 48 threads, this makes a busy server's memory grow even after ten minutes.
"""

import asyncio
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_new_thread(function: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
    """Start function(*args) in a new thread; awaiting the future returns or raises what the function does.

    Cancelling the await does not stop the thread.
    """
    future: Future[Any] = Future()
    # Not `Thread.start`: it waits until the new thread runs, and would block the event loop for that time.
    start_new_thread(_work, (future, function, args))
    return asyncio.wrap_future(future)


def _work(future: "Future[Any]", function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        if future.set_running_or_notify_cancel():
            future.set_result(function(*args))
    except BaseException as error:
        future.set_exception(error)
    finally:
        del future  # break the reference cycle: future -> exception -> this frame -> future
