"""The sampler on the device draws the tokens that the NumPy sampler draws, with every combination of parameters."""

from itertools import product

import numpy as np
import pytest

from llama3.cuda.launch import Kernel
from llama3.cuda.sampler import MAX_TOP, SamplerState, sample
from llama3.errors import LogitsError
from llama3.sampler import Sample, SequenceSampler
from llama3.sampling_params import SamplingParams

ROWS = 64
# Every parameter off and on: 7 * 2 ** 5 = 224 combinations.
TEMPERATURES = (0, 1e-300, 0.3, 0.6, 1, 1.7, 30)
SWITCHES = {
    "top_k": (None, 7),
    "top_p": (None, 0.8),
    "min_p": (None, 0.02),
    "penalties": ({}, {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": -0.5}),
    "mask": (False, True),
}
OTHERS = [{"top_k": 1}, {"top_p": 0}, {"top_p": 1}, {"top_k": 10**6}, {"min_p": 1}, {"top_k": 300, "top_p": 0.999}]


def combinations():
    for temperature, top_k, top_p, min_p, penalties, mask in product(TEMPERATURES, *SWITCHES.values()):
        yield {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, **penalties}, mask
    for other in OTHERS:
        yield {"temperature": 1.2, **other}, False


def logits_of(rows, vocab_size, seed):
    """Logits of several spreads. A third of the rows is rounded to 1/4, so that many are equal. A few are -infinity."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, vocab_size)) * random.choice([0.5, 2, 8], (rows, 1))
    x[::3] = np.round(x[::3] * 4) / 4
    x[random.random(x.shape) < 0.01] = -np.inf
    return x.astype(np.float32)


def sampler_of(parameters, masked, vocab_size, seed):
    random = np.random.default_rng(seed)
    allowed = random.random(vocab_size) < 0.5
    params = SamplingParams(**parameters, seed=int(random.integers(2**63)))
    sampler = SequenceSampler(
        params, random.integers(0, vocab_size, 30), vocab_size, (lambda: allowed) if masked else None
    )
    for token in random.integers(0, vocab_size, random.integers(0, 20)):
        sampler.accept(int(token))
    return sampler


def draw(device, logits, samplers, state=None, slots=None):
    rows, vocab_size = logits.shape
    state = state or SamplerState(device, rows, rows, vocab_size)
    tokens, positions = device.upload(np.zeros(rows, np.int32)), device.upload(np.arange(rows, dtype=np.int32))
    prepared = state.prepare(device, samplers, slots or range(rows))
    uploaded = device.upload(logits)
    sample(device, uploaded, state, tokens, positions, prepared.greedy)
    found = state.collect(device, prepared, uploaded)()
    assert device.download(positions).tolist() == [
        row + isinstance(s, Sample) for row, s in enumerate(found)
    ]  # where nothing could be drawn, the position stays
    assert all(token == s.token for token, s in zip(device.download(tokens), found) if isinstance(s, Sample))
    return found


def outcome(sample):
    """The token, or the reason why there is none."""
    return str(sample) if isinstance(sample, LogitsError) else sample.token


def expected(logits, samplers):
    out = []
    for row, sampler in zip(logits, samplers):
        try:
            out.append(sampler.sample(row).token)
        except LogitsError as error:
            out.append(str(error))
    return out


def check_draws(device, vocab_size, n):
    kinds, done = list(combinations()), 0
    state = SamplerState(device, ROWS, ROWS, vocab_size)
    while done < n:
        rows = min(ROWS, n - done)
        logits = logits_of(rows, vocab_size, done)
        samplers = [sampler_of(*kinds[(done + row) % len(kinds)], vocab_size, done + row) for row in range(rows)]
        found = draw(device, logits, samplers, state if rows == ROWS else None)
        assert [outcome(s) for s in found] == expected(logits, samplers), f"from draw {done} on"
        done += rows


def test_each_combination_draws_twice_what_numpy_draws(device):
    check_draws(device, 4096, 2 * 230)


slow_in_emulation = pytest.mark.parametrize(  # a minute, and nothing on a GPU
    "device",
    [pytest.param("emulated", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.gpu)],
    indirect=True,
)


@slow_in_emulation
def test_nine_thousand_eight_hundred_draws_are_numpys(device):
    check_draws(device, 4096, 9_800)


@slow_in_emulation
def test_two_hundred_draws_from_the_whole_vocabulary_are_numpys(device):
    check_draws(device, 128_256, 200)


@pytest.mark.parametrize("vocab_size", [1, 31, 515, 4097])
def test_vocabularies_of_any_size(device, vocab_size):
    check_draws(device, vocab_size, 230)


def test_in_every_order_of_threads_and_blocks(device, in_every_order):
    logits = logits_of(8, 9000, 1)
    kinds = [k for k in combinations() if k[0].get("top_k") and k[0].get("top_p")][:8]

    def run():
        samplers = [sampler_of({**parameters, "logprobs": 5}, masked, 9000, 1) for parameters, masked in kinds]
        found = draw(device, logits, samplers)
        return np.array([[s.token, s.logprob, *(x for pair in s.top for x in pair)] for s in found])

    in_every_order(run)


def test_the_naive_kernel_draws_the_same(device):
    vocab_size = 60
    kinds = [kind for kind in combinations() if not kind[1] and "repetition_penalty" not in kind[0]]
    samplers = [sampler_of(*kind, vocab_size, i) for i, kind in enumerate(kinds)]
    rows = len(samplers)
    logits = logits_of(rows, vocab_size, 3)
    state = SamplerState(device, rows, rows, vocab_size)
    state.prepare(device, samplers, range(rows))
    params, chosen = device.upload(device.download(state.params)), device.alloc((rows,), np.int32)
    found = draw(device, logits, samplers, state)
    args = [state.adjusted, params, chosen, np.int32(rows), np.int32(vocab_size)]
    device.launch(Kernel("sampler.cu", "sampler_naive"), (2,), (32,), args)
    assert device.download(chosen).tolist() == [s.token for s in found]


def test_the_naive_kernel_finds_the_same_most_likely_tokens(device):
    vocab_size, n, rows = 300, 20, 6
    logits = logits_of(rows, vocab_size, 4)
    samplers = [SequenceSampler(SamplingParams(seed=row, logprobs=n), [0], vocab_size) for row in range(rows)]
    found = [[i for i, _ in s.top] for s in draw(device, logits, samplers)]
    top = device.upload(np.zeros((rows, MAX_TOP), np.int32))
    args = [device.upload(logits), top, *(np.int32(size) for size in (rows, n, vocab_size))]
    device.launch(Kernel("sampler_top.cu", "sampler_top_naive"), (1,), (32,), args)
    assert device.download(top)[:, :n].tolist() == found


@pytest.mark.parametrize("greedy", [False, True])
def test_replays_of_a_graph_draw_on_by_themselves(device, monkeypatch, greedy):
    """The device updates its own place in the random numbers and its counts, so the host uploads nothing.

    It may read the tokens of a draw after the next draw has begun.
    """
    vocab_size, rows = 515, 6
    logits = logits_of(rows, vocab_size, 5)
    random = {"temperature": 0 if greedy else 1, "frequency_penalty": 2.0, "top_k": 40, "logprobs": 0 if greedy else 3}
    kinds = [(random, False)] * 4 + [({"temperature": 0}, False)] * 2
    samplers, again = ([sampler_of(*kind, vocab_size, i) for i, kind in enumerate(kinds)] for _ in range(2))
    state = SamplerState(device, 8, rows, vocab_size)
    padded = device.upload(np.concatenate([logits, np.full((2, vocab_size), np.nan, np.float32)]))
    tokens = device.upload(np.full(8, 7, np.int32))
    positions = device.upload(np.array([5] * rows + [-1] * 2, np.int32))
    draw(device, logits, samplers)  # compiles the kernels, which a capture does not allow
    with device.capture() as graph:
        sample(device, padded, state, tokens, positions, greedy)
    prepared = state.prepare(device, samplers, range(rows))
    assert prepared.greedy == greedy and prepared.may_repeat and graph.launches == (2 if greedy else 13)
    uploads, upload = [], device.upload
    monkeypatch.setattr(device, "upload", lambda array, into=None: uploads.append(array.shape) or upload(array, into))
    waiting, expected_samples = [], []
    for step in range(5):
        if step:
            state.repeat(prepared)
        device.replay(graph)
        waiting.append(state.collect(device, prepared, padded))
        expected_samples.append([sampler.sample(row) for sampler, row in zip(again, logits)])
        assert device.download(tokens).tolist() == [*(s.token for s in expected_samples[-1]), 7, 7]
        assert device.download(positions).tolist() == [6 + step] * rows + [-1, -1]
        for sampler, s in zip(again, expected_samples[-1]):
            sampler.accept(s.token)
        if step:
            assert_same_samples(waiting[step - 1](), expected_samples[step - 1])
    assert uploads == []
    with pytest.raises(AssertionError, match="overwritten"):
        waiting[2]()
    assert_same_samples(waiting[4](), expected_samples[4])
    state.prepare(device, again, range(rows))  # other samplers, in the same state: the device cannot know that
    assert sum(shape == (vocab_size,) for shape in uploads) == 4


def assert_same_samples(found, numpy_samples):
    for ours, numpys in zip(found, numpy_samples, strict=True):
        assert ours.token == numpys.token and [i for i, _ in ours.top] == [i for i, _ in numpys.top]
        if numpys.logprob is None:
            assert ours.logprob is None
        else:
            numbers = [[s.logprob, *(x for _, x in s.top)] for s in (ours, numpys)]
            np.testing.assert_allclose(*numbers, rtol=1e-12, atol=1e-12)


def test_the_history_is_uploaded_only_if_it_is_not_what_the_device_has_counted(device, monkeypatch):
    logits, sampler = logits_of(1, 515, 6), sampler_of({"temperature": 1, "presence_penalty": 1.0}, False, 515, 1)
    state = SamplerState(device, 1, 1, 515)
    uploads, upload = [], device.upload
    monkeypatch.setattr(device, "upload", lambda array, into=None: uploads.append(array.shape) or upload(array, into))

    def drawn():
        uploads.clear()
        (found,) = draw(device, logits, [sampler], state)
        assert found == sampler.sample(logits[0])
        return found.token, (515,) in uploads

    token, uploaded = drawn()
    assert uploaded
    assert drawn() == (token, True)  # the device has counted the token, and the host has not
    sampler.accept(token)
    token, uploaded = drawn()
    assert not uploaded
    sampler.accept(token, 3)  # a forced token, which no draw gave
    assert drawn()[1]


def test_a_slot_with_a_new_sequence_gets_its_history(device):
    vocab_size, logits = 515, logits_of(2, 515, 6)
    state = SamplerState(device, 2, 3, vocab_size)
    penalties = {"temperature": 0.8, "repetition_penalty": 2.0, "presence_penalty": 1.0}
    for seed, slots in ((1, [0, 1]), (2, [1, 2]), (3, [0, 1])):
        samplers = [sampler_of(penalties, False, vocab_size, seed * 10 + i) for i in range(2)]
        for _ in range(3):
            found = [s.token for s in draw(device, logits, samplers, state, slots)]
            assert found == expected(logits, samplers)
            for sampler, token in zip(samplers, found):
                sampler.accept(token)
        samplers[0].accept(3)  # a forced token, which no draw gave
        found = [s.token for s in draw(device, logits, samplers, state, slots)]
        assert found == expected(logits, samplers)


def test_a_row_does_not_see_its_neighbours(device):
    logits = logits_of(8, 515, 7)
    kinds = list(combinations())[100:108]
    samplers = [sampler_of(*kind, 515, i) for i, kind in enumerate(kinds)]
    whole = draw(device, logits, samplers)
    for row in range(8):
        assert draw(device, logits[row : row + 1], samplers[row : row + 1]) == whole[row : row + 1]


def test_a_row_that_cannot_be_drawn_says_why_and_the_others_are_drawn(device):
    logits = logits_of(6, 5000, 8)
    logits[0, 4500], logits[0, 4700], logits[1, 17], logits[2] = np.nan, np.inf, np.inf, -np.inf
    forbidden = np.zeros(5000, bool)
    params = SamplingParams(seed=1)
    masks = [None, None, None, lambda: forbidden, None, None]
    samplers = [SequenceSampler(params, [0], 5000, mask) for mask in masks]
    found = draw(device, logits, samplers)
    for row, sampler in enumerate(samplers):
        if row < 4:
            with pytest.raises(LogitsError) as numpy_error:
                sampler.sample(logits[row])
            assert isinstance(found[row], LogitsError) and str(found[row]) == str(numpy_error.value)
        else:
            assert found[row] == sampler.sample(logits[row])


@pytest.mark.parametrize("vocab_size", [5, 515, 9000])
def test_log_probabilities_are_numpys(device, vocab_size):
    logits = logits_of(6, vocab_size, 9)
    samplers = [
        SequenceSampler(SamplingParams(seed=row, temperature=row / 3, logprobs=n, presence_penalty=1), [1], vocab_size)
        for row, n in enumerate((0, 1, 5, 20, MAX_TOP, MAX_TOP + 1))
    ]
    numpy_samples = [sampler.sample(row) for sampler, row in zip(samplers, logits)]
    assert_same_samples(draw(device, logits, samplers), numpy_samples)
