"""Threads and BLAS: share work among as many Python threads as BLAS would use, and delay forks during a product.

NumPy releases the global interpreter lock (GIL) during conversions and products, so the threads run in parallel.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from threadpoolctl import ThreadpoolController

ROWS = 32  # fewer are done before another thread begins
SLICES = 4  # for each thread, so that they end at about the same time
_lock = threading.Lock()  # the number of BLAS threads belongs to the process: one caller at a time may change it
_workers: tuple[ThreadpoolController, ThreadPoolExecutor] | None = None
_processes = ContextVar("processes", default=1)  # how many share this machine's cores, each with its own product
_idle = threading.Condition()  # guards _computing
_computing: dict[int, int] = {}  # thread -> how many blocks of `fork_waits` it is in


def share(work: Callable[[Iterator[slice]], None], n: int, step: int, most: int = 0) -> None:
    """Cut range(n) into slices of `step` and call work(slices) on as many threads as BLAS would use.

    All calls draw from the same slices, each of which comes once, so a slow thread holds up no other.

    While they run, each call of BLAS uses one thread, even if there is only one slice, for the calling thread alone.
    After a product, OpenBLAS's own threads wait for the next one by going in circles, for some 30 ms. They would take
    the cores from these threads: with the 8B at a context of 2,048, NumPy would be 1.4 times as slow.

    most: a slice may be several steps long, up to this, if there are SLICES for each thread. Whenever a thread takes a
    slice it needs Python's global lock, and often waits until the other threads are in the middle of theirs.
    """
    with _lock:
        blas, pool = _get_workers()
        threads = max(1, _count(blas) // _processes.get()) if n > step else 1
        step = max(step, min(most, n // (SLICES * threads)) // step * step)
        slices = map(lambda begin: slice(begin, min(begin + step, n)), range(0, n, step))
        with blas.limit(limits=1, user_api="blas"):
            others = [pool.submit(work, slices) for _ in range(threads - 1)]
            try:
                work(slices)
            finally:
                others = [other for other in others if not other.cancel()]  # on a busy machine some have not started
                wait(others)  # after Ctrl-C, too: BLAS gets its threads back only when no product is running
        for other in others:
            other.result()  # raises what the thread raised


def by_rows(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """function(*arrays) for a function that treats each row alone, on all threads if there are more than ROWS rows."""
    if len(arrays[0]) <= ROWS:
        return function(*arrays)
    out = np.empty_like(arrays[0])

    def work(slices: Iterator[slice]) -> None:
        for rows in slices:
            out[rows] = function(*(array[rows] for array in arrays))

    share(work, len(out), ROWS)
    return out


def thread_count() -> int:
    """How many threads BLAS uses in this process."""
    with _lock:
        return _count(_get_workers()[0])


def _get_workers() -> tuple[ThreadpoolController, ThreadPoolExecutor]:
    global _workers
    if _workers is None:
        _workers = ThreadpoolController(), ThreadPoolExecutor(os.cpu_count(), "llama3-linear")
    return _workers


def _count(blas: ThreadpoolController) -> int:
    found = [library["num_threads"] for library in blas.info() if library["user_api"] == "blas"]
    return max(found) if found else os.cpu_count() or 1  # none found: a BLAS that threadpoolctl cannot control


@contextmanager
def cores_shared(processes: int) -> Iterator[None]:
    """In the `with` block, `share` leaves cores to the other processes that compute the same step."""
    before = _processes.set(processes)
    try:
        yield
    finally:
        _processes.reset(before)


@contextmanager
def fork_waits() -> Iterator[None]:
    """While the `with` block runs, `os.fork` in another thread waits until it ends.

    OpenBLAS ends its threads before a fork, even in the middle of another thread's product. The parent or the child
    would then wait forever. The child would also keep the limit of one BLAS thread from `share`.
    """
    me = threading.get_ident()
    with _idle:
        _computing[me] = _computing.get(me, 0) + 1
    try:
        yield
    finally:
        with _idle:
            _computing[me] -= 1
            if not _computing[me]:
                del _computing[me]
            _idle.notify_all()


def _before_fork() -> None:
    """Wait until no other thread computes. No thread begins to compute until the fork is done.

    Hooks run in the reverse order of their registration. So this one runs before the hook of ThreadPoolExecutor, which
    takes a lock that a product needs.
    """
    _idle.acquire()
    _idle.wait_for(lambda: not _computing.keys() - {threading.get_ident()})


def _after_fork_in_parent() -> None:
    _idle.release()


def _after_fork_in_child() -> None:
    """A forked child has none of its parent's threads, and its copies of the locks may be held forever."""
    global _lock, _workers, _idle, _computing
    me = threading.get_ident()
    _lock, _workers, _idle = threading.Lock(), None, threading.Condition()
    _computing = {me: _computing[me]} if me in _computing else {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
