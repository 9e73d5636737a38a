"""The engine's rules, on a model without weights: no rule here takes more than milliseconds to check."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from llama3 import engine as engine_module
from llama3.engine import Engine, Request
from llama3.errors import RequestError
from llama3.sampling_params import SamplingParams
from tests.mock_model import VOCAB, MockModel, answer, next_token

GREEDY = SamplingParams(temperature=0)
PROMPTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)


def run(engine: Engine) -> list[engine_module.Event]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


@pytest.fixture(autouse=True, scope="module")
def small_copies():
    """Copy also a few tokens. The chunks of the mock are as small: prompts of a few tokens need several steps."""
    before = engine_module.MIN_COPY
    engine_module.MIN_COPY = 2
    yield
    engine_module.MIN_COPY = before


@given(st.lists(st.tuples(PROMPTS, st.integers(1, 20)), min_size=1, max_size=6), st.integers(1, 3))
def test_every_request_gets_the_answer_it_would_get_alone(requests, slots):
    engine = Engine(MockModel(), slots)
    submitted = [Request(prompt, GREEDY, n) for prompt, n in requests]
    for request in submitted:
        engine.submit(request)
    events = run(engine)
    for request in submitted:
        assert request.tokens == answer(request.prompt, request.max_tokens)
        assert request.finish_reason == "length"
        mine = [event for event in events if event.request is request]
        assert [event.sample.token for event in mine] == request.tokens
        assert [event.finish_reason for event in mine] == [None] * (len(mine) - 1) + ["length"]
    assert not engine.running


class EngineMachine(RuleBasedStateMachine):
    """Requests join, leave and fail at any moment; each one's tokens always begin the answer that it gets alone."""

    ahead = False

    def __init__(self):
        super().__init__()
        self.model = MockModel(ahead=self.ahead)
        self.engine = Engine(self.model, slots=2)
        self.requests: list[Request] = []

    @rule(prompt=PROMPTS, n=st.integers(1, 20), stops=st.frozensets(st.integers(0, VOCAB - 1), max_size=10))
    def submit(self, prompt, n, stops):
        self.requests.append(Request(prompt, GREEDY, n, stops))
        self.engine.submit(self.requests[-1])

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), n=st.integers(1, 20))
    def submit_a_continuation(self, data, n):
        """As the next turn of a chat does: a slot may still hold the beginning."""
        known = data.draw(st.sampled_from(self.requests))
        prompt = [*known.prompt, *known.tokens, *data.draw(PROMPTS)][:44]
        self.submit(prompt, n, frozenset())

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request = data.draw(st.sampled_from(self.requests))
        before = request.finish_reason
        self.engine.cancel(request)
        assert request.finish_reason == before or (before is None and request.finish_reason == "cancelled")

    @rule()
    def step(self):
        self.engine.step()
        self.check()

    @precondition(lambda self: self.engine.busy)
    @rule()
    def a_step_fails(self):
        self.model.fail_with = MemoryError("no room")
        running = {event.request for event in self.engine.step()}
        if self.model.fail_with is None:
            assert all(r.finish_reason == "error" and isinstance(r.error, MemoryError) for r in running)
        else:
            assert self.ahead  # the step had begun before, and no other one began
        self.model.fail_with = None
        self.check()

    @precondition(lambda self: self.engine.busy)
    @rule()
    def ctrl_c_in_a_step(self):
        self.model.fail_with = KeyboardInterrupt()
        try:
            self.engine.step()
        except KeyboardInterrupt:
            assert self.model.fail_with is None
        else:
            assert self.ahead
        self.model.fail_with = None

    def check(self):
        for r in self.requests:
            whole = answer(r.prompt, r.max_tokens, r.stop_ids)
            assert r.tokens == whole[: len(r.tokens)]
            if r.finish_reason == "stop":
                assert r.tokens == whole and next_token([*r.prompt, *r.tokens]) in r.stop_ids
            elif r.finish_reason == "length":
                assert len(r.tokens) == r.max_tokens
        assert len(self.engine.running) <= 2

    def teardown(self):
        while self.engine.busy:
            self.engine.step()
        self.check()
        assert all(r.finish_reason for r in self.requests)
        assert not self.engine.running


class AheadMachine(EngineMachine):
    """The same for a model that begins a step before the tokens of the last one are read."""

    ahead = True


TestEngine, TestAhead = EngineMachine.TestCase, AheadMachine.TestCase
TestEngine.settings = TestAhead.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def interrupted_at_line(n: int, slots: int, ahead: bool) -> tuple[bool, Request]:
    """Run two requests with a Ctrl-C at the n-th line of the engine that runs.

    In one slot they run one after the other; in two, the second gets a copy of what the first has in common with it.

    Both requests then run to their ends. Returns whether n lines were run, and the second request.
    """
    engine = Engine(MockModel(ahead=ahead), slots)
    first, second = Request([1, 2, 3], GREEDY, 3), Request([1, 2, 4], GREEDY, 3)
    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        if frame.f_code.co_filename != engine_module.__file__:
            return None
        lines += event == "line"
        if lines == n and event == "line":
            raise KeyboardInterrupt
        return trace

    engine.submit(first)
    if slots > 1:
        engine.step()
    engine.submit(second)
    sys.settrace(trace)
    try:
        run(engine)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    for _ in range(40):
        engine.step()
    assert first.tokens == answer(first.prompt, 3) and first.finish_reason == "length"
    return lines >= n, second


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("ahead", [False, True])
def test_ctrl_c_at_any_line_loses_neither_a_token_nor_a_slot(slots, ahead):
    n = 0
    there = True
    while there:
        n += 1
        there, second = interrupted_at_line(n, slots, ahead)
        assert second.tokens == answer(second.prompt, 3) and second.finish_reason == "length", n
    assert n > 100


def test_a_sampler_that_fails_ends_its_own_request_alone():
    engine = Engine(MockModel(), slots=2)
    healthy, hopeless = Request([1], GREEDY, 5), Request([2], GREEDY, 5, mask=lambda: np.zeros(VOCAB, bool))
    engine.submit(healthy)
    engine.submit(hopeless)
    run(engine)
    assert healthy.tokens == answer([1], 5) and healthy.error is None
    assert hopeless.finish_reason == "error" and "no token is left" in str(hopeless.error)


def test_a_request_joins_while_others_run():
    model = MockModel()
    engine = Engine(model, slots=2)
    first, second = Request([1, 2], GREEDY, 20), Request([3], GREEDY, 2)
    engine.submit(first)
    engine.step()
    engine.submit(second)
    engine.step()
    assert len(first.tokens) == 2 and len(second.tokens) == 1
    engine.step()
    assert second.finish_reason == "length" and first.finish_reason is None


def test_a_prompt_is_read_in_longer_chunks_while_no_request_decodes():
    model = MockModel()
    engine = Engine(model, slots=2)
    for n in (30, 5):
        engine.submit(Request([1] * n, GREEDY, 3))
    run(engine)
    assert [batch.counts for batch in model.batches[:4]] == [(12,), (12,), (6, 5), (1, 1)]


def test_decoding_goes_on_while_a_long_prompt_is_read_in_chunks():
    model = MockModel()
    engine = Engine(model, slots=2)
    decoding, reading = Request([1], GREEDY, 20), Request(list(range(30)), GREEDY, 1)
    engine.submit(decoding)
    engine.step()
    engine.submit(reading)
    progress = []
    while reading.finish_reason is None:
        engine.step()
        progress.append(reading.prompt_done)
    assert progress == [7, 14, 21, 28, 30]
    assert [batch.counts for batch in model.batches[1:]] == [(1, 7), (1, 7), (1, 7), (1, 7), (1, 2)]
    assert len(decoding.tokens) == 6


def test_the_next_turn_of_a_dialogue_runs_only_what_is_new():
    model = MockModel()
    engine = Engine(model, slots=2)
    first = Request([1, 2, 3], GREEDY, 4)
    engine.submit(first)
    run(engine)
    turn = Request([1, 2, 3, *first.tokens, 9, 9], GREEDY, 4)
    model.batches.clear()
    engine.submit(turn)
    run(engine)
    assert turn.tokens == answer(turn.prompt, 4)
    assert model.batches[0].counts == (3,)  # the first answer's last token had never been fed, and two are new


def test_a_prompt_takes_its_beginning_from_a_slot_that_runs():
    model = MockModel()
    engine = Engine(model, slots=2)
    first, second = Request([1, 2, 3, 4, 5], GREEDY, 20), Request([1, 2, 3, 4, 6], GREEDY, 20)
    engine.submit(first)
    engine.step()
    engine.submit(second)
    model.batches.clear()
    run(engine)
    assert model.batches[0].counts == (1, 1)  # of the second prompt only the last token is new
    assert first.tokens == answer(first.prompt, 20) and second.tokens == answer(second.prompt, 20)


def test_a_prompt_goes_where_the_fewest_tokens_are_lost():
    """A short beginning in common, such as <|begin_of_text|>, must not cost a long prompt its slot."""
    model = MockModel()
    engine = Engine(model, slots=2)
    long, short = Request([1, *range(30)], GREEDY, 1), Request([1, 50], GREEDY, 1)
    for request in (long, short, Request([1, 60], GREEDY, 1)):
        engine.submit(request)
        run(engine)
    model.batches.clear()
    again = Request([1, *range(30), 7], GREEDY, 1)
    engine.submit(again)
    run(engine)
    assert model.batches[0].counts == (1,) and again.tokens == answer(again.prompt, 1)


def tokens_read(model: MockModel, engine: Engine, request: Request) -> int:
    """Run one request alone -> how many tokens of its prompt were not taken from the cache."""
    model.batches.clear()
    engine.submit(request)
    run(engine)
    assert request.tokens == answer(request.prompt, request.max_tokens)
    return sum(sum(batch.counts) for batch in model.batches) - (request.max_tokens - 1)


SHORT = st.lists(st.integers(50, VOCAB - 1), min_size=1, max_size=6).map(lambda tokens: [0, *tokens])


@given(st.integers(2, 4), st.lists(st.lists(SHORT, min_size=1, max_size=8), min_size=1, max_size=3))
def test_short_requests_between_the_turns_cost_a_dialogue_nothing(slots, between_turns):
    model = MockModel(max_seq_len=128)
    engine = Engine(model, slots)
    turn = Request([0, *range(1, 40)], GREEDY, 4)
    tokens_read(model, engine, turn)
    for others in between_turns:
        for other in others:
            tokens_read(model, engine, Request(other, GREEDY, 2))
        turn = Request([*turn.prompt, *turn.tokens, 9, 9, 9], GREEDY, 4)
        assert tokens_read(model, engine, turn) == 4  # the answer's last token had never been fed, and three are new


def test_a_long_document_that_nobody_asks_about_again_loses_its_slot_to_a_dialogue():
    """Otherwise the dialogue and the short requests would overwrite each other in the other slot, forever."""
    model = MockModel(max_seq_len=256)
    engine = Engine(model, slots=2)
    tokens_read(model, engine, Request([0, *[99] * 150], GREEDY, 1))
    turn, read = Request([0, *range(1, 40)], GREEDY, 1), []
    for i in range(12):
        tokens_read(model, engine, Request([0, 50 + i], GREEDY, 1))
        read.append(tokens_read(model, engine, turn))
        turn = Request([*turn.prompt, *turn.tokens, 9, 9], GREEDY, 1)
    assert read[:2] == [39, 42] and read[-6:] == [3] * 6


def test_prompts_are_read_in_the_order_in_which_they_came():
    model = MockModel()
    engine = Engine(model, slots=3)
    decoding, short, first, second = (
        Request([i] * n, GREEDY, m) for i, n, m in ((1, 1, 40), (2, 1, 2), (3, 20, 1), (4, 20, 1))
    )
    for request in (decoding, short, first, second):
        engine.submit(request)
        if request is short:
            engine.step()  # these two decode
    while not second.prompt_done:
        engine.step()
    assert (second.slot, first.slot) == (short.slot, 2) and first.finish_reason == "length"


@given(PROMPTS, PROMPTS, st.lists(PROMPTS, max_size=3))
def test_a_restored_prompt_is_reused_and_changes_no_answer(prefix, rest, others):
    model = MockModel(max_seq_len=128)
    engine = Engine(model, slots=2)
    for other in others:
        engine.submit(Request(other, GREEDY, 3))
    run(engine)
    k = np.broadcast_to(np.array(prefix, np.float32)[:, None], (1, 1, len(prefix), 2))
    engine.restore(prefix, None, k, k)
    request = Request([*prefix, *rest], GREEDY, 5)
    engine.submit(request)
    model.batches.clear()
    run(engine)
    assert request.tokens == answer(request.prompt, 5)
    assert sum(batch.counts[0] for batch in model.batches) <= len(rest) + 4


def test_a_prompt_is_restored_into_a_free_slot_only():
    engine = Engine(MockModel(), slots=1)
    engine.submit(Request([1, 2], GREEDY, 5))
    engine.step()
    k = np.zeros((1, 1, 1, 2), np.float32)
    with pytest.raises(RequestError, match=r"^all 1 slots are in use"):
        engine.restore([1], None, k, k)


def test_abandoned_requests_end_with_the_error():
    engine = Engine(MockModel(), slots=1)
    requests = [Request([1, 2], GREEDY, 5), Request([3], GREEDY, 5)]
    for request in requests:
        engine.submit(request)
    engine.step()
    engine.abandon(error := RequestError("gone"))
    assert not engine.busy and all(r.finish_reason == "error" and r.error is error for r in requests)


@given(st.integers(1, 70))
def test_a_max_tokens_that_nobody_set_is_what_the_window_leaves(n):
    engine = Engine(MockModel(max_seq_len=64))
    request = Request([1] * n, GREEDY)
    if n >= 64:
        with pytest.raises(
            RequestError, match=f"^the prompt has {n} tokens, and the context window holds 64, the answer"
        ):
            engine.submit(request)
        return
    engine.submit(request)
    assert request.max_tokens == 64 - n
    run(engine)
    assert len(request.tokens) == 64 - n and request.finish_reason == "length"


def test_a_max_tokens_that_nobody_set_is_256_where_the_window_leaves_more():
    engine = Engine(MockModel(max_seq_len=1000))
    engine.submit(request := Request([1], GREEDY))
    assert request.max_tokens == 256


WHOLE = [int, np.int8, np.int64, np.uint16, np.array]


@given(st.sampled_from(WHOLE), st.sampled_from(WHOLE), st.sampled_from([list, tuple, np.array]))
def test_whole_numbers_of_any_type_are_taken(number, token, sequence):
    engine = Engine(MockModel(), number(2))
    request = Request(sequence([token(1), token(2)]), GREEDY, number(3))
    engine.submit(request)
    run(engine)
    assert request.tokens == answer([1, 2], 3) and len(engine.samplers) == 2
    assert {type(number) for number in (*request.prompt, request.max_tokens)} == {int}


@pytest.mark.parametrize("slots", [0, 1.0, True, np.bool_(1), "1", None, [1]])
def test_slots_are_a_whole_number(slots):
    with pytest.raises(RequestError, match=r"^slots is .*; expected a whole number of at least 1$"):
        Engine(MockModel(), slots)


def test_a_mask_restricts_the_next_token():
    def only_even():
        mask = [token % 2 == 0 for token in range(VOCAB)]
        return np.array(mask)

    engine = Engine(MockModel())
    request = Request([1, 2, 3], GREEDY, 10, mask=only_even)
    engine.submit(request)
    run(engine)
    assert len(request.tokens) == 10 and all(token % 2 == 0 for token in request.tokens)


def test_prompt_and_answer_may_fill_the_context_to_the_last_token():
    engine = Engine(MockModel(max_seq_len=64))
    request = Request([5] * 60, GREEDY, 4)
    engine.submit(request)
    run(engine)
    assert request.tokens == answer([5] * 60, 4)


@pytest.mark.parametrize(
    "prompt, max_tokens, message",
    [
        ([], 1, "the prompt is empty"),
        ([1, VOCAB], 1, "token 1 of the prompt is 101; expected an id from 0 to 100"),
        ([-1], 1, "token 0 of the prompt is -1"),
        ([True], 1, "token 0 of the prompt is True"),
        ([1.0], 1, "token 0 of the prompt is 1.0"),
        ([np.bool_(1)], 1, "token 0 of the prompt is np.True_"),
        ([1], 0, "max_tokens is 0"),
        ([1], 1.5, "max_tokens is 1.5"),
        ([1], True, "max_tokens is True"),
        ([1] * 60, 5, "60 prompt tokens and max_tokens 5 make 65, and the context window holds 64"),
    ],
)
def test_a_request_that_can_never_run_is_refused_at_once(prompt, max_tokens, message):
    engine = Engine(MockModel(max_seq_len=64))
    with pytest.raises(RequestError) as error:
        engine.submit(Request(prompt, GREEDY, max_tokens))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not engine.busy
