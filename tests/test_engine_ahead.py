"""Steps that begin before the tokens of the last one are read change no answer, and none begins where it must not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3.engine import Engine, Request
from llama3.sampling_params import SamplingParams
from tests.mock_model import VOCAB, MockModel, answer, next_token

GREEDY = SamplingParams(temperature=0)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.7, 1.5]),
    seed=st.integers(0, 9),
    top_p=st.sampled_from([None, 0.9]),
    frequency_penalty=st.sampled_from([0, 0.5]),
    logprobs=st.sampled_from([None, 0, 3]),
)
PLAIN, MASKED, FORCED = range(3)
REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
        PARAMS,
        st.integers(1, 20),  # max_tokens
        st.frozensets(st.integers(0, VOCAB - 1), max_size=10),  # stop tokens
        st.sampled_from([PLAIN, PLAIN, PLAIN, MASKED, FORCED]),
        st.integers(0, 30),  # the step in which it comes
        st.integers(1, 40),  # the number of tokens after which it is cancelled
    ),
    min_size=1,
    max_size=6,
)


def request_of(prompt, params, max_tokens, stops, kind):
    request = Request(prompt, params, max_tokens, stops)
    if kind == MASKED:
        request.mask = lambda: np.arange(VOCAB) % 2 == 0
    elif kind == FORCED:
        request.forced = lambda: [7] * (len(request.samples) % 3)
    return request


def outcomes(specifications, slots, ahead):
    """The answers of requests that come and are cancelled as the specifications say, and the model."""
    model = MockModel(ahead=ahead, certainty=3.0)
    engine = Engine(model, slots)
    requests = [request_of(*specification[:5]) for specification in specifications]
    step = 0
    while engine.busy or step <= 30:
        for request, (*_, comes, _) in zip(requests, specifications):
            if step == comes:
                engine.submit(request)
        engine.step()
        for request, (*_, cancelled) in zip(requests, specifications):
            if len(request.samples) >= cancelled:
                engine.cancel(request)
        step += 1
    engine.step()  # a request that was cancelled may have left a step
    return [(request.samples, request.finish_reason, str(request.error)) for request in requests], engine


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(1, 4))
def test_answers_and_log_probabilities_are_those_of_an_engine_that_waits(specifications, slots):
    waiting, _ = outcomes(specifications, slots, ahead=False)
    found, engine = outcomes(specifications, slots, ahead=True)
    assert found == waiting
    for slot, request in enumerate(engine.slot_requests):
        if request:
            assert engine.cache.lengths[slot] <= len(request.prompt) + len(request.tokens)


def run(engine):
    while engine.busy:
        engine.step()


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_all_steps_but_the_first_begin_early_and_none_is_in_vain(n):
    model = MockModel(ahead=True)
    engine, request = Engine(model), Request([1, 2], GREEDY, n)
    engine.submit(request)
    run(engine)
    assert request.tokens == answer([1, 2], n)
    # Reading the prompt gives the first token. The step after it needs this token on the host.
    assert len(model.batches) == n and model.launched_ahead == max(n - 2, 0)


def test_a_stop_token_costs_one_step_and_its_position_is_free_again():
    model = MockModel(ahead=True)
    engine, whole = Engine(model, slots=2), answer([1, 2], 30)
    stop = whole[9]
    assert stop not in whole[:9]
    request, other = Request([1, 2], GREEDY, 30, frozenset([stop])), Request([5, 6], GREEDY, 30)
    for each in (request, other):
        engine.submit(each)
    run(engine)
    assert request.tokens == whole[:9] and other.tokens == answer([5, 6], 30)
    assert len(model.batches) == 30 and request.slot is not None
    assert sum(request.slot in batch.slots for batch in model.batches) == 11
    assert engine.cache.lengths[request.slot] == 2 + 9


def test_a_request_joins_at_most_one_step_later():
    model = MockModel(ahead=True)
    engine, first, second = Engine(model, slots=2), Request([1, 2], GREEDY, 30), Request([3], GREEDY, 30)
    engine.submit(first)
    for _ in range(5):
        engine.step()
    n = len(model.batches)
    engine.submit(second)
    for _ in range(2):
        engine.step()
    assert model.batches[n].counts == (1, 1) and len(second.tokens) == 1 and len(first.tokens) == 7


def test_while_all_slots_are_taken_a_request_that_waits_stops_nothing():
    model = MockModel(ahead=True)
    engine = Engine(model, slots=1)
    for prompt in ([1, 2], [3, 4]):
        engine.submit(Request(prompt, GREEDY, 10))
    run(engine)
    assert len(model.batches) == 20 and model.launched_ahead == 16


@pytest.mark.parametrize("hook", ["mask", "forced", "adjust"])
def test_a_request_that_needs_each_token_on_the_host_makes_every_step_wait(hook):
    hooks = {"mask": lambda: None, "forced": list, "adjust": lambda tokens, logits: logits}
    model = MockModel(ahead=True)
    engine, hooked = Engine(model, slots=2), Request([1], GREEDY, 5)
    setattr(hooked, hook, hooks[hook])
    for request in (hooked, Request([2], GREEDY, 20)):
        engine.submit(request)
    while not hooked.finish_reason:
        engine.step()
    assert model.launched_ahead == 0 and hooked.tokens == answer([1], 5)
    run(engine)
    assert model.launched_ahead > 10


def test_a_request_that_is_cancelled_between_two_steps_gains_no_token():
    model = MockModel(ahead=True)
    engine, request, other = Engine(model, slots=2), Request([1, 2], GREEDY, 30), Request([3], GREEDY, 10)
    for each in (request, other):
        engine.submit(each)
    for _ in range(4):
        engine.step()
    engine.cancel(request)
    events = engine.step()
    assert [event.request for event in events] == [other] and len(request.tokens) == 4
    run(engine)
    assert other.tokens == answer([3], 10)
    assert engine.cache.lengths[request.slot] == 2 + 4  # the step had fed the last token of the answer


def test_a_prompt_is_restored_into_the_slot_of_a_request_that_has_just_ended():
    """The step that runs in vain for this request has begun before, and changes nothing in the slot afterwards."""
    model = MockModel(ahead=True)
    engine, stop = Engine(model, slots=2), next_token([1, 2, *answer([1, 2], 3)])
    engine.submit(Request([1, 2], GREEDY, 30, frozenset([stop])))
    other = Request([5], GREEDY, 30)
    engine.submit(other)
    while engine.slot_requests[0] is None or not engine.slot_requests[0].finish_reason:
        engine.step()
    assert engine._ahead is not None
    prefix = list(range(20))
    k = np.broadcast_to(np.array(prefix, np.float32)[:, None], (1, 1, 20, 2))
    engine.restore(prefix, None, k, k)
    request = Request([*prefix, 9], GREEDY, 5)
    engine.submit(request)
    model.batches.clear()
    run(engine)
    assert request.tokens == answer(request.prompt, 5) and other.tokens == answer([5], 30)
    assert [batch.counts for batch in model.batches if 0 in batch.slots] == [(1, 1)] * 5  # none for the prefix


def test_prompt_and_answer_may_fill_the_context_to_the_last_token():
    """The mock fails where a step would write behind the end of the context."""
    engine = Engine(MockModel(max_seq_len=16, ahead=True), slots=2)
    requests = [Request(list(range(n)), GREEDY, 16 - n, frozenset([stop])) for n, stop in ((3, 200), (10, 201))]
    for request in requests:
        engine.submit(request)
    run(engine)
    assert [request.tokens for request in requests] == [answer(r.prompt, r.max_tokens) for r in requests]
