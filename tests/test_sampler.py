"""The sampler against closed forms on a handful of tokens, and against a plain one that sorts everything."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from llama3.errors import Llama3Error, RequestError
from llama3.philox import uniform
from llama3.sampler import PART, LogitsError, Sampling, SamplingParams, draw, survivors

VOCAB = 128_256


def logits_of(*probabilities):
    return np.log(np.array(probabilities)).astype(np.float32)


def kept(probabilities, **params):
    """The ids that the filters leave at temperature 1, unless another is given."""
    logits = logits_of(*probabilities)
    ids = survivors(logits, SamplingParams(**{"temperature": 1, **params}))
    return list(range(len(logits))) if ids is None else ids.tolist()


def sampling(vocab_size, prompt=(), output=(), mask=None, **params):
    result = Sampling(SamplingParams(**params), prompt, vocab_size, mask)
    for token in output:
        result.accept(token)
    return result


def probabilities_drawn(monkeypatch, sampler, logits, n=4000):
    """The share of each token when u takes n evenly spread values: its probability, to 1 / n."""
    counts = np.zeros(len(logits))
    for i in range(n):
        monkeypatch.setattr("llama3.sampler.uniform", lambda seed, index, u=(i + 0.5) / n: u)
        counts[sampler.sample(logits).token] += 1
    return counts / n


# ---- the plain sampler: sort everything, in Python's own floats


def reference(logits, params, prompt, output, allowed, u):
    """(ids kept that have a weight, the token drawn)."""
    x = [float(value) for value in logits]
    repetition = params.repetition_penalty or 1
    for token in {*prompt, *output}:
        count = list(output).count(token)
        value = x[token] / repetition if x[token] > 0 else x[token] * repetition
        value -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        x[token] = float(np.float32(value))
    x = [value if ok else -math.inf for value, ok in zip(x, allowed)]
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if params.temperature == 0:
        return order[:1], order[0]
    highest = x[order[0]]
    weight = [math.exp((value - highest) / params.temperature) for value in x]
    order = order[: params.top_k]
    if params.top_p is not None and params.top_p < 1:
        target, running, n = params.top_p * sum(weight[i] for i in sorted(order)), 0.0, 0
        while n == 0 or running < target:
            running += weight[order[n]]
            n += 1
        order = order[:n]
    order = [i for i in order if weight[i] >= (params.min_p or 0)]
    ids = [i for i in sorted(order) if weight[i] > 0]
    target, running = u * sum(weight[i] for i in ids), 0.0
    for token in ids:
        running += weight[token]
        if running > target:
            break
    return ids, token


levels = st.sampled_from([-math.inf, -40.0, -1.0, -0.5, 0.0, 0.25, 3.0])  # few values: many ties
finite = st.floats(-80, 80, width=32)
some_logits = st.one_of(
    npst.arrays(np.float32, st.integers(1, 60), elements=elements).filter(lambda x: x.max() > -math.inf)
    for elements in (levels, finite, st.one_of(levels, finite))
)
some_params = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 10)),
    top_p=st.none() | st.floats(0, 1),
    top_k=st.none() | st.integers(1, 70),
    min_p=st.none() | st.just(0) | st.floats(1e-9, 1),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([0, 1, 0.5, 1.3]),
    frequency_penalty=st.sampled_from([0, -0.5, 0.7]),
    presence_penalty=st.sampled_from([0, -0.3, 1.5]),
)


@given(some_logits, some_params, st.data())
def test_the_token_is_the_plain_samplers(logits, params, data):
    tokens = st.lists(st.integers(0, len(logits) - 1), max_size=8)
    prompt, output = data.draw(tokens), data.draw(tokens)
    allowed = data.draw(npst.arrays(bool, len(logits)))
    allowed[logits.argmax()] = True
    ours = Sampling(params, prompt, len(logits), lambda: allowed)
    for token in output:
        ours.accept(token)
    _, expected = reference(logits, params, prompt, output, allowed, uniform(params.seed, len(output)))
    assert ours.sample(logits).token == expected


@given(some_logits, some_params)
def test_the_filters_keep_what_the_plain_sampler_keeps(logits, params):
    params = replace(params, temperature=params.temperature or 1)
    expected, _ = reference(logits, params, [], [], [True] * len(logits), 0.5)
    ids = survivors(logits, params)
    ids = np.arange(len(logits)) if ids is None else ids
    assert np.all(np.diff(ids) > 0)
    assert [i for i in ids if (logits[i] - logits.max()) / params.temperature > -745] == expected


def big_logits(kind):
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(VOCAB).astype(np.float32)
    return {
        "flat": noise * 0.1,
        "wide": noise * 3,
        "tied": np.round(noise * 3),
        "equal": noise * 0,
        "peaked": noise * 2.5 + 12 * (rng.random(VOCAB) < 1e-4).astype(np.float32),
    }[kind]


@pytest.mark.parametrize("kind", ["flat", "wide", "tied", "equal", "peaked"])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 40}, {"top_k": 100_000}, {"top_p": 0.1}, {"top_p": 0.999}, {"min_p": 0.3}, {"top_k": 500, "top_p": 0.5}],
    ids=str,
)
def test_a_whole_vocabulary_is_sampled_like_by_a_full_sort(kind, options):
    logits, params = big_logits(kind), SamplingParams(temperature=0.7, seed=11, **options)
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits.astype(np.float64) - logits.max()) / 0.7)
    order = order[: params.top_k]
    if params.top_p is not None:
        running = np.cumsum(weights[order])
        order = order[: np.searchsorted(running, params.top_p * weights[np.sort(order)].sum()) + 1]
    if params.min_p is not None:
        order = order[weights[order] >= params.min_p]
    expected = np.sort(order)
    ids = survivors(logits, params)
    np.testing.assert_array_equal(np.arange(VOCAB) if ids is None else ids, expected)
    running = np.cumsum(weights[expected])
    ours = Sampling(params, [], VOCAB)
    for _ in range(3):
        token = expected[np.searchsorted(running, uniform(11, ours.index) * running[-1], side="right")]
        assert ours.sample(logits).token == token
        ours.accept(token)


# ---- temperature


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1, 2, 100])
def test_temperature_is_a_power_of_the_probabilities(temperature, monkeypatch):
    p = np.array([0.1, 0.4, 0.2, 0.3])
    expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    drawn = probabilities_drawn(monkeypatch, sampling(4, temperature=temperature), logits_of(*p))
    np.testing.assert_allclose(drawn, expected, atol=1 / 4000)


def test_temperature_0_takes_the_most_likely_token_and_the_lowest_id_among_equals():
    for seed in range(20):
        sampler = sampling(5, temperature=0, seed=seed, top_p=0.1, top_k=1, min_p=1)
        assert sampler.sample(logits_of(0.1, 0.3, 0.2, 0.3, 0.1)).token == 1


def test_temperature_0_follows_penalties_and_mask():
    logits = np.array([1, 5, 4, 3], np.float32)
    assert sampling(4, temperature=0, output=[1], presence_penalty=1.5).sample(logits).token == 2
    assert sampling(4, temperature=0, mask=lambda: np.array([True, False, False, True])).sample(logits).token == 3


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-5])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3, "top_p": 0.9}], ids=str)
@pytest.mark.filterwarnings("error")
def test_a_tiny_temperature_is_greedy_but_for_ties(temperature, options):
    logits = np.array([-3e38, 2, 7, 6.5, 7, -np.inf], np.float32)
    tokens = {sampling(6, temperature=temperature, seed=seed, **options).sample(logits).token for seed in range(30)}
    assert tokens == {2, 4}


@pytest.mark.filterwarnings("error")
def test_a_huge_temperature_is_uniform_over_what_is_possible(monkeypatch):
    logits = np.array([-3e38, 2, -np.inf, 3e38], np.float32)
    for temperature in (1e60, 1.7e308):
        drawn = probabilities_drawn(monkeypatch, sampling(4, temperature=temperature), logits, 300)
        np.testing.assert_allclose(drawn, [1 / 3, 1 / 3, 0, 1 / 3], atol=1e-9)


# ---- filters, one by one and together

P = (0.1, 0.4, 0.2, 0.3)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        ({"top_k": 10**30}, [0, 1, 2, 3]),
        ({"top_p": 0}, [1]),
        ({"top_p": 1e-300}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.91}, [0, 1, 2, 3]),
        ({"top_p": 1}, [0, 1, 2, 3]),
        ({"min_p": 0}, [0, 1, 2, 3]),
        ({"min_p": 0.24}, [0, 1, 2, 3]),
        ({"min_p": 0.26}, [1, 2, 3]),
        ({"min_p": 0.49}, [1, 2, 3]),
        ({"min_p": 0.51}, [1, 3]),
        ({"min_p": 0.74}, [1, 3]),
        ({"min_p": 0.76}, [1]),
        ({"min_p": 1}, [1]),
    ],
    ids=str,
)
def test_a_filter_keeps(options, expected):
    assert kept(P, **options) == expected


@pytest.mark.parametrize(
    "options, expected, why",
    [
        ({"top_k": 2, "top_p": 0.55}, [1], "of 0.4 + 0.3 alone, 0.4 is 57 %; of all it is 40 %"),
        ({"top_k": 3, "top_p": 0.75}, [1, 3], "0.7 of 0.9 is 78 %"),
        ({"top_p": 0.95, "min_p": 0.26}, [1, 2, 3], "min_p cuts what top_p left"),
        ({"top_p": 0.75, "min_p": 0.76}, [1], "top_p sums over all tokens, not over what min_p would leave"),
        ({"top_p": 0.41, "min_p": 0.51}, [1, 3], "after min_p alone, 0.4 of 0.7 would be enough"),
        ({"temperature": 0.5, "top_p": 0.52}, [1], "squared: 16 of 30"),
        ({"temperature": 0.5, "min_p": 0.3}, [1, 3], "squared: 4 of 16 and 9 of 16"),
        ({"temperature": 2, "min_p": 0.49}, [0, 1, 2, 3], "the root of 0.1 / 0.4 is 0.5"),
        ({"top_k": 3, "top_p": 0.85, "min_p": 0.6}, [1, 3], "three, three, two"),
    ],
)
def test_filters_apply_in_order_after_the_temperature(options, expected, why):
    assert kept(P, **options) == expected, why


@pytest.mark.parametrize("n, top_p, count", [(4, 0.25, 1), (4, 0.5, 2), (4, 0.75, 3), (10, 0.3, 3), (8, 0.501, 5)])
def test_equal_tokens_whose_sum_is_exactly_top_p_are_enough(n, top_p, count):
    assert kept([1 / n] * n, top_p=top_p) == list(range(count))


def test_top_p_just_below_1_may_only_drop_what_is_beyond_it():
    p = np.full(1000, 1e-3)
    assert kept(p, top_p=1 - 2**-53) == list(range(1000))
    assert kept(p, top_p=0.9985) == list(range(999))


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.7}], ids=str)
def test_of_equal_tokens_the_lowest_ids_stay(options):
    assert kept([0.1, 0.2, 0.2, 0.2, 0.3], **options) == [1, 2, 4]


def test_min_p_keeps_all_ties_or_none():
    assert kept([0.1, 0.2, 0.2, 0.2, 0.3], min_p=0.66) == [1, 2, 3, 4]
    assert kept([0.1, 0.3, 0.1, 0.1, 0.3], min_p=1) == [1, 4]


def test_what_is_kept_is_drawn_in_proportion(monkeypatch):
    drawn = probabilities_drawn(monkeypatch, sampling(4, temperature=1, top_k=2), logits_of(*P))
    np.testing.assert_allclose(drawn, [0, 4 / 7, 0, 3 / 7], atol=1 / 4000)


# ---- penalties


def after_penalties(logits, prompt=(), output=(), **penalties):
    """The logits the draw would see, read off the probabilities' logs is too coarse: ask for greedy choices instead."""
    raise NotImplementedError
