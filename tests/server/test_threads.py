import asyncio
import gc
import threading

import pytest

from llama3.server.threads import in_new_thread


def test_what_it_returns_and_raises_comes_back():
    async def ask():
        assert await in_new_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await in_new_thread(divmod, 7, 0)

    asyncio.run(ask())


def test_each_piece_of_work_has_a_thread_of_its_own_beside_the_loop():
    async def ask():
        meeting = threading.Barrier(5, timeout=60)  # all of them at once, and the loop goes on meanwhile
        pieces = [in_new_thread(lambda: (meeting.wait(), threading.get_ident())[1]) for _ in range(5)]
        return await asyncio.gather(*pieces)

    idents = asyncio.run(ask())
    assert len({*idents, threading.get_ident()}) == 6


def test_who_stops_waiting_stops_nothing():
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(60)
        done.set()

    async def ask():
        piece = in_new_thread(work)
        while not begun.is_set():
            await asyncio.sleep(0.001)
        piece.cancel()
        with pytest.raises(asyncio.CancelledError):
            await piece

    asyncio.run(ask())  # and the loop is closed before the thread has ended
    go_on.set()
    assert done.wait(60)


def test_an_error_leaves_no_circle_of_references():
    def fail():
        raise ValueError

    async def ask():
        for _ in range(10):
            with pytest.raises(ValueError):
                await in_new_thread(fail)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(ask())
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        asyncio.run(ask())
        gc.collect()
        assert not [thing for thing in gc.garbage if isinstance(thing, ValueError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
