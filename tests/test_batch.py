"""Many requests at once: their answers in order, a bounded window, no slot that waits, and an end at any moment."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_model import sleeping_llama

from llama3 import Llama, RequestError
from llama3.batch import IN_FLIGHT, WINDOW, in_order
from llama3.batch_request import Answerer


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 4))
def test_answers_come_in_the_order_of_the_requests(delays: list[int], slots: int):
    def answer(request: tuple[int, int]) -> int:
        time.sleep(request[1] / 3000)
        return request[0]

    assert list(in_order(enumerate(delays), answer, slots)) == list(range(len(delays)))


@pytest.mark.parametrize("slots", [1, 3])
def test_memory_does_not_grow_with_the_number_of_requests(slots: int):
    """Neither the requests that are read, nor the answers that wait behind the first one, which takes longest."""
    release, most, read = threading.Event(), WINDOW * slots, 0

    def requests() -> Iterator[int]:
        nonlocal read
        for read in range(1, 1000):
            if read == most:
                release.set()  # the window is full: the first answer comes
            yield read

    def answer(request: int) -> int:
        assert request > 1 or release.wait(60)
        return request

    for n, request in enumerate(in_order(requests(), answer, slots), 1):
        assert request == n and read < n + most


def test_only_so_many_are_in_flight():
    lock, now, most = threading.Lock(), 0, 0

    def answer(request: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.001)
        with lock:
            now -= 1

    list(in_order(range(100), answer, 3))
    assert most == IN_FLIGHT * 3


def test_a_finished_answer_does_not_wait_for_the_window_to_fill():
    given_out: list[int] = []

    def requests() -> Iterator[int]:
        for k in range(5):
            yield k
            while k and len(given_out) < k:  # the answer to the request before this one
                time.sleep(0.001)
                yield -1

    for answer in in_order(requests(), lambda request: request, 4):
        given_out += [answer] * (answer >= 0)
    assert given_out == [0, 1, 2, 3, 4]


def test_an_exception_is_raised_when_its_turn_has_come_and_the_rest_is_stopped():
    def answer(request: int) -> int:
        if request == 3:
            raise ValueError("three")
        return request

    stopped: list[bool] = []
    answers = in_order(range(100), answer, 2, lambda: stopped.append(True))
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(answers)
    assert stopped and list(answers) == []


def test_the_slots_are_full_in_all_but_a_few_steps():
    """Each step of 4 slots gives nearly 4 tokens, although the answers have different lengths and come in order."""
    llama, model = sleeping_llama(4, 0.002)
    requests = [{"prompt": f"{k}", "max_tokens": 3 + 7 * k % 40} for k in range(60)]
    answers = list(llama.batch(requests))
    assert [answer["result"]["usage"]["completion_tokens"] for answer in answers] == [
        request["max_tokens"] for request in requests
    ]
    assert model.tokens / model.steps / 4 >= 0.92


def test_closing_ends_the_answers_that_are_running():
    llama, model = sleeping_llama(2, 0.001)
    answers = llama.batch({"prompt": "a", "max_tokens": 1 if k == 0 else 1900} for k in range(100))
    assert next(answers)["success"]  # it may have waited for a slot
    before = model.steps
    answers.close()  # waits until the threads have ended
    assert not llama._engine.busy and model.steps - before < 1900
    assert llama.generate("a", max_tokens=3, seed=1).finish_reason == "length"


def test_after_the_end_an_answerer_answers_no_more():
    llama, _ = sleeping_llama(1, 0)
    answerer = Answerer(llama)
    answerer.close()
    with pytest.raises(RequestError, match="stopped"):
        answerer.answer({"prompt": "a"})


def test_python_s_batch_gives_what_run_gives():
    llama = Llama.load(slots=2)
    inputs = [{"prompt": "What is RoPE?", "seed": k, "max_tokens": 8} for k in range(1, 5)]
    expected = [llama.run(one) for one in inputs]
    assert [answer["result"] for answer in llama.batch(iter(inputs))] == expected
