"""The stages of the sampler and the logit lens, against `plain.py`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3 import Llama, plain
from llama3.inspect import lens
from llama3.inspect.run import Inspection, inspect
from llama3.inspect.steps import STAGES, distributions
from llama3.sampling_params import SamplingParams
from tests.inspect.conftest import ASK

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.3, 1, 2]),
    top_k=st.sampled_from([None, 1, 5]),
    top_p=st.sampled_from([None, 0.5, 0.9]),
    min_p=st.sampled_from([None, 0.1]),
    repetition_penalty=st.sampled_from([1, 1.5]),
    presence_penalty=st.sampled_from([0, 1]),
)


@settings(max_examples=60, deadline=None)
@given(PARAMS, st.integers(0, 2**32))
def test_after_the_last_stage_the_distribution_is_that_of_the_plain_sampler(params: SamplingParams, seed: int):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, 50).astype(np.float32)
    seen, counts = np.zeros(50, bool), np.zeros(50, np.int32)
    seen[:9], counts[4:9] = True, 1  # 0 to 3 are in the prompt, 4 to 8 in the output
    after = distributions(logits, params, seen, counts)
    for name in STAGES:
        assert after[name].sum() == pytest.approx(1)
    chosen = {plain.sample(logits, params, u, range(4), list(range(4, 9))) for u in (0.01, 0.3, 0.5, 0.8, 0.99)}
    assert all(after["min_p"][token] > 0 for token in chosen)
    if params.temperature and params.repetition_penalty == 1 and not params.presence_penalty:
        ids, weights = plain.survivors(logits.astype(np.float64), params)
        expected = np.zeros(50)
        expected[ids] = weights / weights.sum()
        np.testing.assert_allclose(after["min_p"], expected, atol=1e-6)


def test_a_token_that_a_filter_removed_stays_removed(demo: Llama):
    seen = inspect(demo, ASK, temperature=2, top_k=20, top_p=0.8, min_p=0.05, seed=3, max_tokens=12)
    for step in seen.steps:
        left = [step.left[name] for name in STAGES]
        assert left == sorted(left, reverse=True) and left[3] == 20
        assert step.token in step.rivals and step.stages["min_p"][step.rivals.index(step.token)] > 0


def test_the_random_number_of_a_step_draws_its_token(demo: Llama):
    seen = inspect(demo, ASK, temperature=1.5, seed=7, max_tokens=12)
    ids = [token.id for token in seen.tokens]
    rows = demo.logits(ids)[seen.n_prompt - 1 :]
    assert [plain.sample(row, seen.params, step.u) for row, step in zip(rows, seen.steps)] == [
        s.token for s in seen.steps
    ]


def test_the_lens_at_the_last_point_is_the_model(seen: Inspection):
    last = [seen.lens.of_next[-1, step.position - 1] for step in seen.steps[:-1]]
    np.testing.assert_allclose(last, [step.probability for step in seen.steps[:-1]], atol=1e-4)
    assert np.isnan(seen.lens.of_next[:, -1]).all()


def test_the_lens_in_pieces_is_the_lens_at_once(demo: Llama, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lens, "ROWS", 7)
    monkeypatch.setattr(lens, "OUTPUTS", 300)
    random = np.random.default_rng(0)
    weights, tokens = demo.checkpoint.weights, [5, 6, 7, 8, 9]
    stream = {name: random.normal(0, 1, (5, 256)) for name in ("a", "b", "c")}
    found = lens.read_lens(stream, tokens, demo.config, weights)
    for s, x in enumerate(stream.values()):
        p = plain.softmax(plain.linear(plain.rms_norm(x, weights.norm, demo.config.norm_eps), weights.output))
        order = np.argsort(-p, axis=1)[:, :5]
        np.testing.assert_array_equal(found.tokens[s], order)
        np.testing.assert_allclose(found.probabilities[s], np.take_along_axis(p, order, axis=1), rtol=1e-4)
        np.testing.assert_allclose(found.of_next[s, :4], p[np.arange(4), tokens[1:]], rtol=1e-4)
