"""How every figure of gpu.py is timed."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

RUNS, WARM = 3, 2  # that count, and before them some that do not: they compile


def timed(sync: Callable[[], None], run: Callable[[], Any], steps: int = 1, runs: int = RUNS) -> float:
    """Milliseconds of one of the `steps` that `run` makes: the median of the runs. sync: waits for the device."""
    times = []
    for _ in range(WARM + runs):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append((time.perf_counter() - start) * 1e3 / steps)
    return median(times[WARM:])
