"""Work in new threads: results, errors, concurrency, cancellation, and no reference cycles."""

import asyncio
import gc
import threading

import pytest

from llama3.server.threads import in_new_thread


def test_return_values_and_exceptions_are_passed_on():
    async def main():
        assert await in_new_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await in_new_thread(divmod, 7, 0)

    asyncio.run(main())


def test_each_call_runs_in_its_own_thread():
    async def main():
        meeting = threading.Barrier(5, timeout=60)  # passed only if all five run at once and the loop is not blocked
        pieces = [in_new_thread(lambda: (meeting.wait(), threading.get_ident())[1]) for _ in range(5)]
        return await asyncio.gather(*pieces)

    idents = asyncio.run(main())
    assert len({*idents, threading.get_ident()}) == 6


def test_cancelling_the_await_does_not_stop_the_thread():
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work():
        started.set()
        go_on.wait(60)
        done.set()

    async def main():
        piece = in_new_thread(work)
        while not started.is_set():
            await asyncio.sleep(0.001)
        piece.cancel()
        with pytest.raises(asyncio.CancelledError):
            await piece

    asyncio.run(main())  # the loop is closed before the thread ends
    go_on.set()
    assert done.wait(60)


def test_an_exception_leaves_no_reference_cycle():
    def fail():
        raise ValueError

    async def main():
        for _ in range(10):
            with pytest.raises(ValueError):
                await in_new_thread(fail)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        asyncio.run(main())
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, ValueError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
