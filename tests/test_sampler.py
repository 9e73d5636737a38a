"""The sampler against closed forms on a handful of tokens, and against a plain one that sorts everything."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from llama3 import plain
from llama3.errors import Llama3Error, LogitsError, RequestError
from llama3.philox import uniform
from llama3.sampler import Sample, SequenceSampler, draw, penalised, survivors
from llama3.sampler_fast import CHUNK
from llama3.sampling_params import SamplingParams

VOCAB = 128_256


def logits_of(*probabilities):
    return np.log(np.array(probabilities)).astype(np.float32)


def kept(probabilities, **params):
    """The ids that the filters leave at temperature 1, unless another is given."""
    logits = logits_of(*probabilities)
    ids = survivors(logits, SamplingParams(**{"temperature": 1, **params}))
    return list(range(len(logits))) if ids is None else ids.tolist()


def sampling(vocab_size, prompt=(), output=(), mask=None, **params):
    result = SequenceSampler(SamplingParams(**params), prompt, vocab_size, mask)
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


# ---- against `plain.py`, which sorts everything

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
    ours = SequenceSampler(params, prompt, len(logits), lambda: allowed)
    for token in output:
        ours.accept(token)
    u = uniform(params.seed, len(output))
    assert ours.sample(logits).token == plain.sample(np.where(allowed, logits, -np.inf), params, u, prompt, output)


@given(some_logits, some_params)
def test_the_filters_keep_what_the_plain_sampler_keeps(logits, params):
    params = replace(params, temperature=params.temperature or 1)
    ids, weights = plain.survivors(logits.astype(np.float64), params)
    expected = ids[weights > 0].tolist()
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
    [
        {},
        {"top_k": 40},
        {"top_k": 100_000},
        {"top_p": 0.1},
        {"top_p": 0.999},
        {"min_p": 0.3},
        {"top_k": 500, "top_p": 0.5},
    ],
    ids=str,
)
def test_a_whole_vocabulary_is_sampled_as_by_plain(kind, options):
    logits, params = big_logits(kind), SamplingParams(temperature=0.7, seed=11, **options)
    expected, _ = plain.survivors(logits.astype(np.float64), params)
    ids = survivors(logits, params)
    np.testing.assert_array_equal(np.arange(VOCAB) if ids is None else ids, expected)
    ours = SequenceSampler(params, [], VOCAB)
    for _ in range(3):
        token = plain.sample(logits, params, uniform(11, ours.index))
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
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3, "top_p": 0.9}], ids=str
)
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
    for logits in np.random.default_rng(6).standard_normal((50, 1000)).astype(np.float32):
        for temperature in (1, 100):  # many bins of the histogram, one bin
            params = SamplingParams(temperature=temperature, top_p=1 - 2**-53)
            assert len(survivors(logits, params)) == 1000  # whichever way a sum is rounded


def test_a_first_token_of_exactly_top_p_is_enough():
    tested = 0
    for second in np.arange(1, 65, dtype=np.float32) / -8:
        total = 1 + math.exp(second)
        if 1 / total * total == 1:
            assert survivors(np.array([0, second]), SamplingParams(temperature=1, top_p=1 / total)).tolist() == [0]
            tested += 1
    assert tested > 10


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
    sampler = sampling(len(logits), prompt, output, **penalties)
    return penalised(np.array(logits, np.float32), sampler.params, sampler.seen, sampler.counts).tolist()


def test_repetition_divides_positive_and_multiplies_negative_logits_of_prompt_and_output():
    logits = [4, -4, 0, 4, -4, 8]
    assert after_penalties(logits, [0, 1, 2], [3, 4, 3], repetition_penalty=2) == [2, -8, 0, 2, -8, 8]
    assert after_penalties(logits, [0, 0, 0], [1, 1, 1], repetition_penalty=0.5) == [8, -2, 0, 4, -4, 8]


@pytest.mark.parametrize("off", [0, 1])
def test_repetition_0_means_off_like_1(off):
    assert after_penalties([4, -4], [0], [1], repetition_penalty=off) == [4, -4]


def test_frequency_counts_each_time_in_the_output_and_never_the_prompt():
    assert after_penalties([1, 1, 1], [0, 0, 1], [1, 2, 2, 2], frequency_penalty=0.5) == [1, 0.5, -0.5]
    assert after_penalties([1, 1, 1], [0, 0, 1], [1, 2, 2, 2], frequency_penalty=-1) == [1, 2, 4]


def test_presence_counts_once_in_the_output_and_never_the_prompt():
    assert after_penalties([1, 1, 1], [0, 0, 1], [1, 2, 2, 2], presence_penalty=0.5) == [1, 0.5, 0.5]
    assert after_penalties([1, 1, 1], [0, 0, 1], [1, 2, 2, 2], presence_penalty=-2) == [1, 3, 3]


def test_repetition_comes_before_frequency_and_presence():
    penalties = {"repetition_penalty": 2, "frequency_penalty": 0.5, "presence_penalty": 3}
    assert after_penalties([4, -4, 4], [2], [0, 0, 1], **penalties) == [4 / 2 - 1 - 3, -4 * 2 - 0.5 - 3, 4 / 2]


def test_penalties_come_before_the_temperature_and_the_filters():
    logits = np.array([3, 2, 0], np.float32)
    sampler = sampling(3, output=[0], presence_penalty=2, temperature=0.5, top_k=1)
    assert sampler.sample(logits).token == 1


def test_a_penalty_leaves_the_models_logits_alone():
    logits = np.array([3, 2, 0], np.float32)
    sampling(3, output=[0], presence_penalty=2, repetition_penalty=1.3).sample(logits)
    assert logits.tolist() == [3, 2, 0]


def test_a_tiny_repetition_penalty_does_not_overflow():
    assert sampling(3, [1], repetition_penalty=1e-300).sample(np.array([3, 2, 0], np.float32)).token == 1


# ---- masks and logits that leave nothing to choose


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}], ids=str)
def test_the_only_allowed_token_is_chosen(options):
    logits = np.array([9, 1, -30, 5], np.float32)
    for seed in range(20):
        mask = np.arange(4) == 2
        assert sampling(4, mask=lambda: mask, seed=seed, **options).sample(logits).token == 2  # noqa: B023


def test_the_mask_comes_before_the_filters():
    mask = np.array([True, False, True, True])
    logits = logits_of(*P)
    assert {sampling(4, mask=lambda: mask, top_k=2, seed=seed).sample(logits).token for seed in range(50)} == {2, 3}


def test_the_mask_is_asked_before_each_draw_and_may_allow_all():
    masks = iter([np.array([False, True]), None, np.array([True, False])])
    sampler = sampling(2, mask=lambda: next(masks), temperature=0)
    assert [sampler.sample(np.array([1, 0], np.float32)).token for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_allowed_is_an_error(temperature):
    with pytest.raises(LogitsError, match="no token is left"):
        sampling(3, mask=lambda: np.zeros(3, bool), temperature=temperature).sample(np.zeros(3, np.float32))
    with pytest.raises(LogitsError, match="no token is left"):
        sampling(3, temperature=temperature).sample(np.full(3, -np.inf, np.float32))
    with pytest.raises(LogitsError, match="no token is left"):
        mask = np.array([True, True, False])
        logits = np.array([-np.inf, -np.inf, 1], np.float32)
        sampling(3, mask=lambda: mask, temperature=temperature).sample(logits)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}, {"logprobs": 2}], ids=str)
def test_a_logit_that_is_nan_or_infinite_is_an_error_that_names_it(bad, place, options):
    logits = np.zeros(5, np.float32)
    logits[place] = bad
    mask = np.arange(5) != place  # a masked logit must not hide it
    with pytest.raises(LogitsError, match=rf"logit of token {place} is {bad}: .*checkpoint") as error:
        sampling(5, mask=lambda: mask, **options).sample(logits)
    assert isinstance(error.value, Llama3Error)


@given(some_logits, st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2**-53]), st.floats(1e-3, 1e3))
def test_a_token_without_weight_is_never_drawn_and_no_draw_falls_off_the_end(logits, u, temperature):
    token = draw(logits, temperature, u)
    assert 0 <= token < len(logits)
    assert math.exp((float(logits[token]) - float(logits.max())) / temperature) > 0


# ---- the draw


@pytest.mark.parametrize("n", [1, 2, 7, 8, 1000, CHUNK, CHUNK + 1])
def test_u_on_a_border_draws_the_upper_token(n):
    for token in {0, n // 2, n - 1}:
        u = token / n
        if u * n == token:
            assert draw(np.zeros(n, np.float32), 1.0, u) == token
        assert draw(np.zeros(n, np.float32), 1.0, (token + 0.999) / n) == token


def test_the_highest_u_draws_the_last_token_whichever_way_a_sum_is_rounded():
    for logits in np.random.default_rng(7).standard_normal((50, 1000)).astype(np.float32):
        assert draw(logits, 1.0, 1 - 2**-53) == 999


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
def test_next_to_every_border_the_draw_is_as_exact_as_float64(spread):
    rng = np.random.default_rng(8)
    logits = (rng.standard_normal(3 * CHUNK + 100) * spread).astype(np.float32)
    shares = np.cumsum(np.exp((logits.astype(np.float64) - logits.max()) / 0.8))
    shares /= shares[-1]
    for token in rng.choice(len(logits) - 1, 100, replace=False):
        for distance in (1e-5, 1e-6, 1e-7, 1e-9, 1e-12):
            for u in (shares[token] - distance, shares[token] + distance):
                if 0 <= u < 1:
                    drawn = draw(logits, 0.8, u)
                    low, high = (shares[drawn - 1] if drawn else 0), shares[drawn]
                    assert low - 1e-14 <= u <= high + 1e-14  # only the last bits of a sum depend on its order


def test_float32_weights_err_less_than_the_draw_allows_for():
    x = np.linspace(-80, 0, 1_000_001)
    error = np.abs(np.exp(x.astype(np.float32)) / np.exp(x) - 1)
    assert np.all(error <= -x * 2.0**-24 + 3 * 2.0**-23)


def test_100_000_draws_have_the_right_frequencies():
    p = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01])
    logits, n = logits_of(*p), 100_000
    counts = np.zeros(10)
    for index in range(n):
        counts[draw(logits, 1.0, uniform(2024, index))] += 1
    chi_square = ((counts - n * p) ** 2 / (n * p)).sum()
    # Wilson and Hilferty (1931): the cube root of chi-square over its degrees of freedom is nearly normal.
    freedom, one_in_10_000 = 9, 3.719
    limit = freedom * (1 - 2 / (9 * freedom) + one_in_10_000 * math.sqrt(2 / (9 * freedom))) ** 3  # 33.8
    assert chi_square < limit


# ---- seeds


def tokens_drawn(sampler, n=40):
    logits = np.zeros(1000, np.float32)
    tokens = []
    for _ in range(n):
        tokens.append(sampler.sample(logits).token)
        sampler.accept(tokens[-1])
    return tokens


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 9_999_999_999, 2**64 - 1])
def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(seed):
    tokens = tokens_drawn(sampling(1000, seed=seed))
    assert tokens == tokens_drawn(sampling(1000, prompt=[5], seed=seed))
    assert tokens != tokens_drawn(sampling(1000, seed=seed ^ 1))
    assert tokens != tokens_drawn(sampling(1000, seed=seed ^ 1 << 40))
    assert len(set(tokens)) > 30  # each index draws anew


def test_without_a_seed_one_is_drawn_and_reported():
    first, second = sampling(1000), sampling(1000)
    assert first.seed != second.seed
    assert all(1 <= sampler.seed <= 9_999_999_999 for sampler in (first, second))
    assert tokens_drawn(first) == tokens_drawn(sampling(1000, seed=first.seed))


def test_sampling_twice_without_accepting_gives_the_same_token():
    sampler = sampling(1000, seed=3, presence_penalty=1, logprobs=1)
    logits = np.zeros(1000, np.float32)
    assert sampler.sample(logits) == sampler.sample(logits)
    assert sampler.index == 0 and not sampler.seen.any() and not sampler.counts.any()


def test_a_forced_token_counts_like_a_drawn_one():
    drawn, forced = sampling(1000, seed=3), sampling(1000, seed=3)
    first_two = tokens_drawn(drawn, 2)
    for token in first_two:
        forced.accept(token)
    assert forced.index == 2 and forced.counts[first_two].all()
    assert tokens_drawn(drawn) == tokens_drawn(forced)


# ---- log-probabilities


def test_without_logprobs_there_are_none():
    assert sampling(4).sample(logits_of(*P)) in [Sample(token, None, ()) for token in range(4)]


def test_logprobs_are_those_of_the_raw_logits():
    mask = np.array([True, False, True, True])
    options = {"temperature": 0.1, "top_k": 2, "repetition_penalty": 1.7, "presence_penalty": 2, "logprobs": 3}
    sampler = sampling(4, [3], [3, 3], lambda: mask, **options)
    sample = sampler.sample(logits_of(*P) + 5)
    assert sample.logprob == pytest.approx(math.log(P[sample.token]), abs=1e-6)
    assert [token for token, _ in sample.top] == [1, 3, 2]
    assert [logprob for _, logprob in sample.top] == pytest.approx(np.log([0.4, 0.3, 0.2]), abs=1e-6)


@pytest.mark.parametrize("n, count", [(0, 0), (1, 1), (4, 4), (5, 5), (6, 5), (10**30, 5)])
def test_as_many_logprobs_as_asked_for_highest_first_then_lowest_id(n, count):
    sample = sampling(5, logprobs=n, seed=1).sample(logits_of(0.2, 0.1, 0.2, 0.3, 0.2))
    assert [token for token, _ in sample.top] == [3, 0, 2, 4, 1][:count]
    assert isinstance(sample.logprob, float)


@given(some_logits)
def test_logprobs_are_a_distribution(logits):
    top = sampling(len(logits), logprobs=len(logits)).sample(logits).top
    assert math.fsum(math.exp(logprob) for _, logprob in top) == pytest.approx(1, abs=1e-12)


def test_logprobs_of_a_whole_vocabulary():
    logits = big_logits("wide")
    x = logits.astype(np.float64)
    expected = x - x.max() - math.log(math.fsum(np.exp(x - x.max())))
    sample = sampling(VOCAB, logprobs=5).sample(logits)
    assert sample.logprob == pytest.approx(expected[sample.token], abs=1e-12)
    assert [token for token, _ in sample.top] == np.argsort(-logits, kind="stable")[:5].tolist()


# ---- bad input


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("temperature", [None, 0, 1e-300, 1, 5, np.float32(0.5), np.int64(2), np.array(0.5), Fraction(1, 2)], [-0.1]),
        ("top_p", [None, 0, 1e-9, 1], [-0.1, 1.01]),
        ("top_k", [None, 1, 50, 10**30, np.int32(3), np.array(3)], [0, -1, 1.0, "3"]),
        ("min_p", [None, 0, 1], [-0.1, 1.05]),
        ("seed", [None, 0, 9_999_999_999, 2**64 - 1, np.uint64(2**64 - 1)], [-1, 2**64, 1.0]),
        ("repetition_penalty", [None, 0, 1, 2, 100], [-0.1, 101]),
        ("frequency_penalty", [None, -100, -2, 0, 2, 100], [-101, 101]),
        ("presence_penalty", [None, -100, -2, 0, 2, 100], [-101, 101]),
        ("logprobs", [None, 0, 20], [-1, 1.0]),
    ],
)
def test_a_parameter_out_of_range_or_of_the_wrong_type_is_refused_by_name(name, good, bad):
    for value in good:
        stored = getattr(SamplingParams(**{name: value}), name)
        assert stored == (getattr(SamplingParams(), name) if value is None else value) and type(stored) in (
            int,
            float,
            type(None),
        )
    huge = [10**400] if name not in ("top_k", "logprobs") else []
    never = [
        True,
        math.nan,
        math.inf,
        -math.inf,
        "1",
        [1],
        1j,
        np.bool_(1),
        np.float32(np.nan),
        np.array(True),
        np.ones(2),
    ]
    for value in [*bad, *huge, *never]:
        with pytest.raises(
            RequestError, match=f"^{name} is .*: expected a (finite|whole) number (from|not below) -?[0-9]+"
        ):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("token", [-1, 10, 10**20])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(RequestError, match=f"token id {token} .*0 to 9"):
        sampling(10, prompt=[3, token])
    with pytest.raises(RequestError, match=f"token id {token} .*0 to 9"):
        sampling(10).accept(token)


@pytest.mark.parametrize("n", [0, 1, 8, 9, 50])
def test_tokens_accepted_together_count_as_tokens_accepted_one_by_one(n):
    tokens = np.random.default_rng(n).integers(0, 20, n).tolist()
    together, single = (SequenceSampler(SamplingParams(seed=1), [3], 20) for _ in range(2))
    together.accept(*tokens)
    for token in tokens:
        single.accept(token)
    assert together.index == single.index == n
    assert np.array_equal(together.seen, single.seen) and np.array_equal(together.counts, single.counts)
    with pytest.raises(RequestError):
        together.accept(*tokens, 20)
    assert together.index == n and np.array_equal(together.counts, single.counts)
