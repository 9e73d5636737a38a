"""The filters and the repetition penalty give the same as transformers', in the order in which it applies them."""

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llama3.sampler import SequenceSampler, draw, penalised, survivors
from llama3.sampling_params import SamplingParams


def transformers_scores(logits, params):
    """transformers' logits after the filters: -inf for tokens that were removed."""
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    warpers = [TemperatureLogitsWarper(params.temperature)]
    if params.top_k is not None:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p is not None:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p is not None:
        warpers.append(MinPLogitsWarper(params.min_p))
    for warper in warpers:
        scores = warper(None, scores)
    return scores[0]


def cases():
    rng = np.random.default_rng(3)
    for vocab_size in (5, 100, 3000, 128_256):
        for _ in range(6 if vocab_size > 10_000 else 40):
            chance = rng.random(3) < 0.6  # whether each filter is used
            yield (
                (rng.standard_normal(vocab_size) * rng.uniform(0.5, 5)).astype(np.float32),  # without ties
                SamplingParams(
                    temperature=rng.uniform(0.2, 3),
                    top_k=int(rng.integers(1, vocab_size + 1)) if chance[0] else None,
                    top_p=rng.uniform(0.01, 0.999) if chance[1] else None,
                    min_p=10 ** rng.uniform(-6, 0) if chance[2] else None,
                ),
                rng,
            )


def test_the_same_tokens_are_left_with_the_same_shares():
    tested = 0
    for logits, params, rng in cases():
        if len(np.unique(logits)) < len(logits):  # transformers does not define how ties are broken
            logits = np.unique(logits)
            rng.shuffle(logits)
        theirs = transformers_scores(logits, params)
        ids = survivors(logits, params)
        ids = np.arange(len(logits)) if ids is None else ids
        np.testing.assert_array_equal(ids, torch.isfinite(theirs).nonzero()[:, 0].numpy(), err_msg=str(params))
        shares = theirs.softmax(-1)[ids].numpy().cumsum()
        for u in rng.random(10):
            place = draw(logits[ids], params.temperature, u)
            assert (shares[place - 1] if place else 0) - 1e-12 <= u <= shares[place] + 1e-12
        tested += 1
    assert tested == 126


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.1, 2.0])
def test_the_repetition_penalty_over_prompt_and_output(penalty):
    rng = np.random.default_rng(4)
    logits = rng.standard_normal(1000).astype(np.float32)
    prompt, output = rng.integers(0, 1000, (2, 300)).tolist()
    sampling = SequenceSampler(SamplingParams(repetition_penalty=penalty), prompt, 1000)
    for token in output:
        sampling.accept(token)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), torch.from_numpy(logits)[None])
    ours = penalised(logits, sampling.params, sampling.seen, sampling.counts)
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-6)
