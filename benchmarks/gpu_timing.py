"""The timing of every figure of gpu.py: how long a run takes, and how long a step takes from token to token."""

import time
from collections.abc import Callable
from typing import Any

RUNS = 3  # the runs that count
WARM = 2  # runs before them that do not count: they compile
WARM_STEPS = 8  # steps of decoding before the first that counts: they compile, and capture graphs
STEPS = 64  # steps of decoding in a run that counts
GRAPHS = 16  # replays of a graph in a row without the host, in a run


def timed(sync: Callable[[], None], run: Callable[[], Any], steps: int = 1, runs: int | None = None) -> list[float]:
    """Milliseconds of one step in each of the runs that count; a call of `run` makes `steps` steps.

    sync: waits until the device has finished.
    """
    times = []
    for _ in range(WARM + (runs or RUNS)):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append((time.perf_counter() - start) * 1e3 / steps)
    return times[WARM:]


def timed_delivery(next_tokens: Callable[[], int], batch: int) -> list[float]:
    """Milliseconds a step of decoding, in each of the runs that count.

    next_tokens: waits until some tokens are in the host's memory, and returns how many; a step makes `batch` of them.
    The device is never waited for otherwise. At both ends of a run the same number of steps may be under way, so a run
    holds exactly STEPS steps, also if the next step starts before the tokens of this one are read.
    """

    def steps(n: int) -> None:
        arrived = 0
        while arrived < n * batch:
            found = next_tokens()
            assert found, "a step brought no token"
            arrived += found

    steps(WARM_STEPS)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        steps(STEPS)
        times.append((time.perf_counter() - start) * 1e3 / STEPS)
    return times


def timed_graph(sync: Callable[[], None], replay: Callable[[], None]) -> list[float]:
    """Milliseconds of a graph that is replayed without the host in between, in each of the runs that count."""
    return timed(sync, lambda: [replay() for _ in range(GRAPHS)], GRAPHS)


def decoded_tokens() -> int:
    """How many tokens each sequence of `timed_delivery` gets, with two more that may be under way."""
    return WARM_STEPS + RUNS * STEPS + 2


def positions_after() -> int:
    """The positions behind the prompt that are written: by these tokens, or by graphs that are replayed afterwards."""
    return max(decoded_tokens(), (WARM + RUNS) * GRAPHS) + 1


def prompt_length(context: int, max_len: int) -> int:
    """The prompt's length at which the middle of all counted steps is at `context`, or as near as max_len allows."""
    longest = max_len - positions_after()
    return max(1, min(context - WARM_STEPS - RUNS * STEPS // 2, longest))


def mean_context(context: int, max_len: int) -> int:
    """The context in the middle of the counted steps."""
    return prompt_length(context, max_len) + WARM_STEPS + RUNS * STEPS // 2


def graph_position(context: int, max_len: int) -> int:
    """The position of the first replay of `timed_graph` at which the middle of those that count is at `mean_context`.

    A row at position p reads p + 1 positions.
    """
    return max(0, mean_context(context, max_len) - 1 - WARM * GRAPHS - RUNS * GRAPHS // 2)


def cache_length(context: int, max_len: int) -> int:
    """As many positions as the sequences need, in blocks of 256, which attention takes at a time."""
    return min(max_len, -(-(prompt_length(context, max_len) + positions_after()) // 256) * 256)
