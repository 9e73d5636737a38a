"""Steps that are launched before the last one's tokens are read give what steps one by one give, on a device.

tests/test_engine_ahead.py checks the engine's part of this on a model without weights.
"""

import gc

import numpy as np
import pytest

from llama3.engine import Engine, Request
from llama3.model.batch import Batch
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams
from tests.cuda.test_transformer import CONFIG, PARAMETERS, assert_same_text, forward, on_device, tokens_of

SAMPLED = SamplingParams(seed=3, temperature=0.9, repetition_penalty=1.3, logprobs=2)


def prepared(model, slots, max_len=40):
    """A cache with prompts of different lengths in its slots."""
    cache = model.new_cache(slots, max_len)
    for slot in range(slots):
        forward(model, cache, (slot, tokens_of(9 + 3 * slot, slot)))
    return cache


def samplers_of(params):
    return [SequenceSampler(p, [1, 2, 3], CONFIG.vocab_size) for p in params]


def one_by_one(model, cache, params, steps):
    samplers, tokens, found = samplers_of(params), [5] * len(params), []
    for _ in range(steps):
        found.append(model.step(Batch.of([(i, [token]) for i, token in enumerate(tokens)]), cache, samplers).samples())
        tokens = [sample.token for sample in found[-1]]
        for sampler, token in zip(samplers, tokens):
            sampler.accept(token)
    return found


@pytest.mark.parametrize(
    "params", [PARAMETERS, [PARAMETERS[0]] * 2, [SAMPLED]], ids=["mixed", "greedy", "one row, with log-probabilities"]
)
def test_steps_launched_ahead_draw_the_same_from_the_same_keys_and_values(device, params):
    model, steps = on_device(device), 4
    caches = [prepared(model, len(params)) for _ in range(2)]
    expected = one_by_one(model, caches[0], params, steps)
    pending = model.step(Batch.of([(i, [5]) for i in range(len(params))]), caches[1], samplers_of(params))
    found = []
    for _ in range(steps - 1):
        following = pending.launch_next()
        found.append(pending.samples())
        pending = following
    found.append(pending.samples())
    assert found == expected and pending.samples() == expected[-1]
    assert caches[0].lengths == caches[1].lengths
    for slot in range(len(params)):
        whole, ahead = (cache.read(slot) for cache in caches)
        assert all(np.array_equal(x, y) for x, y in zip(whole, ahead))


def test_a_step_that_needs_something_from_the_host_is_not_launched_ahead(device):
    model = on_device(device)
    cache, batch = prepared(model, 1, 13), Batch.of([(0, [5])])

    def begun(params=PARAMETERS[0], mask=None):
        return model.step(batch, cache, [SequenceSampler(params, [1], CONFIG.vocab_size, mask)])

    assert begun(mask=lambda: None).launch_next() is None
    assert begun(SamplingParams(logprobs=33)).launch_next() is None  # the host computes these from the logits
    cache.truncate(0, 10)
    first, second = begun(), begun()
    assert first.launch_next() is None  # another step has begun since
    assert second.launch_next() is not None
    assert cache.lengths == [13]
    cache.truncate(0, 12)
    assert begun().launch_next() is None  # the slot is full
    prompt = model.step(Batch.of([(0, [1, 2])]), model.new_cache(1, 8), samplers_of(PARAMETERS[:1]))
    assert prompt.launch_next() is None
    assert prompt.samples()[0] is not None


def test_a_row_that_cannot_be_drawn_says_why_even_if_the_next_step_has_begun(device):
    """The first layer's norm of token 7 is NaN only: its logits are, too."""
    model = on_device(device)
    cache = prepared(model, 2)
    embedding = device.download(model.weights.tok_embeddings)
    embedding[7] = np.nan
    device.upload(embedding, into=model.weights.tok_embeddings)
    pending = model.step(Batch.of([(0, [5]), (1, [7])]), cache, samplers_of(PARAMETERS[:1] * 2))
    following = pending.launch_next()
    healthy, failed = pending.samples()
    assert "the logit of token 0 is nan" in str(failed) and healthy.token >= 0
    following.samples()


class WaitingEngine(Engine):
    """It reads every token before it begins the next step."""

    def _begin_next(self, running):
        return None


def random_requests(rng, n):
    """Requests, and the steps in which they come; some stop at a token that they are likely to draw."""
    requests = []
    for i in range(n):
        params = SamplingParams(seed=i, temperature=0.7, frequency_penalty=0.3, logprobs=int(rng.integers(3)) or None)
        stops = frozenset(rng.integers(0, CONFIG.vocab_size, 40 if i % 2 else 0).tolist())
        prompt = tokens_of(int(rng.choice([1, 5, 30, 70])), i).tolist()
        requests.append((int(rng.integers(8)), Request(prompt, params, int(rng.integers(1, 8)), stops)))
    return requests


@pytest.mark.parametrize(("seed", "n"), [(0, 4), pytest.param(1, 12, marks=pytest.mark.slow)])
def test_random_requests_get_the_same_text_and_log_probabilities_as_from_an_engine_that_waits(device, seed, n):
    """A request may join one step later, beside other rows. So the last bits of its logits may differ."""
    model, answers = on_device(device), []
    for kind in (Engine, WaitingEngine):
        engine, requests = kind(model, 3, 120), random_requests(np.random.default_rng(seed), n)
        steps = 0
        while engine.busy or steps < 8:
            for comes, request in requests:
                if comes == steps:
                    engine.submit(request)
            engine.step()
            steps += 1
        answers.append([request for _, request in requests])
    for ahead, waiting in zip(*answers):
        assert ahead.error is None and ahead.params.seed == waiting.params.seed
        assert_same_text(ahead.tokens, waiting.tokens, ahead.prompt, ahead.params)
        for sample, other in zip(ahead.samples, waiting.samples):
            if sample.token != other.token:
                break
            if sample.logprob is not None:
                assert abs(sample.logprob - other.logprob) < 0.02
        else:
            assert ahead.finish_reason == waiting.finish_reason


def test_dropping_an_engine_frees_its_memory_at_once_even_if_a_step_has_begun(emulated):
    """Reference counting frees it, without the garbage collector."""
    model = on_device(emulated)
    before = emulated.allocated
    gc.disable()
    try:
        for _ in range(2):
            engine = Engine(model, 2, 64)
            for prompt in ([1, 2], [3]):
                engine.submit(Request(prompt, SamplingParams(temperature=0), 20))
            for _ in range(4):
                engine.step()
            assert engine._ahead and emulated.allocated > before + 100_000
            del engine
            model._activations = model._activations.first(1)
            assert emulated.allocated <= before + 20_000  # the working memory of the last prompt, which the model keeps
    finally:
        gc.enable()
