"""Many requests at once, and their answers in the order of the requests.

What a request is, and what answers it, is up to the caller: a model in this process (`batch_request.py`), or in others.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

IN_FLIGHT = 2  # requests in flight for each slot: when an answer ends, the next request already waits for its slot
WINDOW = 16  # requests for each slot between the one that is read and the answer that is returned


def in_order(
    requests: Iterable[Request],
    answer: Callable[[Request], Answer],
    slots: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Answer, None, None]:
    """answer(request) for each request, in their order. Each call has a thread; 2 * slots of them run at once.

    slots: how many requests the model, or all models together, can work on at once. Requests are read here when they
    are needed, and at most 16 * slots answers wait for one before them that takes longer; so memory does not grow with
    the number of requests. An exception of `answer` is raised when it is that request's turn.

    stop: called if the iterator is closed, or interrupted by an exception, while requests are in flight. It makes them
    end soon; their answers are dropped.
    """
    pool = ThreadPoolExecutor(IN_FLIGHT * slots, "llama3-batch")
    waiting: deque[Future[Answer]] = deque()
    try:
        for request in requests:
            waiting.append(pool.submit(answer, request))
            while waiting and (len(waiting) >= WINDOW * slots or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise
    finally:
        pool.shutdown()
