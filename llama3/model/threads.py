"""Run one function on as many Python threads as BLAS would use, while BLAS itself is held to one thread.

NumPy releases Python's lock during conversions and products, so the threads run side by side.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()  # the number of BLAS threads belongs to the process: one caller at a time may change it
_workers: tuple[ThreadpoolController, ThreadPoolExecutor] | None = None


def run_on_blas_threads(work: Callable[[], None]) -> None:
    """Call `work` on this thread and on the pool's. The calls divide the work by drawing from one shared iterator."""
    global _workers
    with _lock:
        if _workers is None:
            _workers = ThreadpoolController(), ThreadPoolExecutor(os.cpu_count(), "llama3-linear")
        blas, pool = _workers
        found = [library["num_threads"] for library in blas.info() if library["user_api"] == "blas"]
        threads = max(found, default=os.cpu_count() or 1)  # none found: a BLAS that threadpoolctl cannot control
        with blas.limit(limits=1, user_api="blas"):
            others = [pool.submit(work) for _ in range(threads - 1)]
            try:
                work()
            finally:
                others = [other for other in others if not other.cancel()]  # on a busy machine some never started
                wait(others)  # after Ctrl-C, too: BLAS gets its threads back only when no product is running
        for other in others:
            other.result()  # raises what the thread raised


def _forget_workers() -> None:
    """A forked child has none of its parent's threads, and its copy of the lock may be held forever."""
    global _lock, _workers
    _lock, _workers = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
