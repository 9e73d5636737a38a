"""The timing of every figure of gpu.py."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

RUNS = 3  # the runs that count
WARM = 2  # runs before them that do not count: they compile


def timed(sync: Callable[[], None], run: Callable[[], Any], steps: int = 1, runs: int = RUNS) -> float:
    """Milliseconds of one step, the median of the runs; each call of `run` makes `steps` steps.

    sync: waits until the device has finished.
    """
    times = []
    for _ in range(WARM + runs):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append((time.perf_counter() - start) * 1e3 / steps)
    return median(times[WARM:])
