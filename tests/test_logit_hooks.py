"""logit_bias, logits_processor and stop_ids: applied before the penalties, and log-probabilities stay those of the raw
logits.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3 import Llama, LogitsError, RequestError
from llama3.logit_hooks import adjustment
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=1024)
    folder = write_hf(tmp_path_factory.mktemp("llama"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=2)


def sample(logits, params, prompt=(), output=(), **hooks):
    sampler = SequenceSampler(params, prompt, len(logits), None, adjustment(vocab_size=len(logits), **hooks))
    for token in output:
        sampler.accept(token)
    return sampler.sample(logits)


@given(st.dictionaries(st.integers(0, 9), st.floats(-30, 30, width=32)), st.integers(0, 2**32), st.floats(0, 2))
def test_a_bias_is_the_same_as_other_logits_and_leaves_the_logprobs(bias, seed, temperature):
    logits = np.random.RandomState(1).standard_normal(10).astype(np.float32)
    params = SamplingParams(
        seed=seed, temperature=temperature, repetition_penalty=1.3, presence_penalty=0.5, logprobs=3
    )
    biased = logits.copy()
    for token, value in bias.items():
        biased[token] += value
    found = sample(logits, params, [1], [2], logit_bias=bias, processor=None)
    by_processor = sample(logits, params, [1], [2], logit_bias=None, processor=lambda tokens, given: biased)
    assert found.token == by_processor.token == sample(biased, params, [1], [2], logit_bias={}, processor=None).token
    assert found.top == by_processor.top == sample(logits, params, [1], [2], logit_bias={}, processor=None).top


def test_the_processor_sees_prompt_and_answer_and_the_biased_logits(llama):
    seen = []

    def processor(tokens, logits):
        seen.append(tokens)
        assert logits.shape == (TINY_VOCAB,) and logits.dtype == np.float32 and logits[7] > 1e3
        logits[:] = -np.inf  # its own copy
        logits[100 + len(tokens)] = 0
        return logits

    prompt = llama.encode("Once")
    answer = llama.generate("Once", max_tokens=4, logit_bias={7: 1e4}, logits_processor=processor, logprobs=0)
    assert answer.tokens == [100 + len(prompt) + i for i in range(4)]
    assert seen == [[*prompt, *answer.tokens[:n]] for n in range(4)]
    rows = llama.logits([*prompt, *answer.tokens]).astype(np.float64)[-5:-1]
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for piece, row in zip(answer.pieces, expected, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token], abs=1e-4)


def test_a_bias_of_minus_infinity_forbids_a_token(llama):
    parameters = {"max_tokens": 20, "temperature": 0}
    forbidden = set(llama.generate("Once", **parameters).tokens)
    found = llama.generate("Once", logit_bias=dict.fromkeys(forbidden, -np.inf), **parameters).tokens
    assert not forbidden & set(found)


def test_without_hooks_nothing_is_kept_or_copied():
    assert adjustment(None, None, 10) is None and adjustment({}, None, 10) is None
    assert SequenceSampler(SamplingParams(), [1, 2], 10).tokens == []


def test_stop_ids_end_the_answer_beside_the_models_own(llama):
    plain = llama.generate("Once", max_tokens=30, seed=3, temperature=3.0)
    stop = plain.tokens[10]
    for stop_ids in ([stop], {np.int64(stop)}, np.array([stop])):
        stopped = llama.generate("Once", max_tokens=30, seed=3, temperature=3.0, stop_ids=stop_ids)
        assert stopped.finish_reason == "stop" and stopped.tokens == plain.tokens[: plain.tokens.index(stop)]
    object.__setattr__(llama.checkpoint, "stop_ids", frozenset([stop]))
    try:
        assert llama.generate("Once", max_tokens=30, seed=3, temperature=3.0, stop_ids=[0]).tokens == stopped.tokens
    finally:
        object.__setattr__(llama.checkpoint, "stop_ids", llama.tokenizer.stop_ids)


def broken(tokens, logits):
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        (broken, "logits_processor raised KeyError: 'mine'"),
        (lambda tokens, logits: None, "returned NoneType; expected float32 of shape"),
        (lambda tokens, logits: logits[:5], "returned float32 of shape (5,)"),
        (lambda tokens, logits: logits > 0, "returned bool of shape"),
        (lambda tokens, logits: logits * np.float32(np.nan), "made the logit of token 0 nan"),
        (lambda tokens, logits: logits.astype(np.float64) + 1e300, "made the logit of token 0 inf"),
        (lambda tokens, logits: logits - np.float32(np.inf), "no token is left"),
    ],
)
def test_a_processor_that_fails_ends_its_own_request_alone(llama, processor, says):
    expected = llama.generate("Twice", max_tokens=4, temperature=0).tokens
    other = llama.stream("Twice", max_tokens=4, temperature=0)
    with pytest.raises(LogitsError) as error:
        llama.generate("Once", max_tokens=3, logits_processor=processor)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert other.completion().tokens == expected


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"logit_bias": [1]}, "logit_bias is list; expected a mapping"),
        ({"logit_bias": {TINY_VOCAB: 1}}, f"logit_bias names token {TINY_VOCAB}; expected an id"),
        ({"logit_bias": {"7": 1}}, "logit_bias names token '7'"),
        ({"logit_bias": {7: "1"}}, "logit_bias of token 7 is '1'; expected a finite number"),
        ({"logit_bias": {7: np.nan}}, "logit_bias of token 7 is nan"),
        ({"logit_bias": {7: np.inf}}, "logit_bias of token 7 is inf"),
        ({"logits_processor": 5}, "logits_processor is int; expected a function"),
        ({"on_prompt": 5}, "on_prompt is int; expected a function"),
        ({"stop_ids": 5}, "stop_ids is int; expected a list of token ids"),
        ({"stop_ids": "5"}, "stop_ids is str"),
        ({"stop_ids": [True]}, "stop_ids holds True"),
        ({"stop_ids": [-1]}, "stop_ids holds -1; expected ids from 0"),
    ],
)
def test_bad_hooks_are_refused_in_one_line(llama, parameters, says):
    with pytest.raises(RequestError) as error:
        llama.generate("Once", **parameters)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_on_a_gpu_hooks_are_refused(llama, monkeypatch):
    monkeypatch.setattr(llama, "device", "cuda")
    for name, value in (("logit_bias", {1: 1}), ("logits_processor", lambda tokens, logits: logits)):
        with pytest.raises(RequestError, match=f"^{name} works on the device 'cpu' only, and this model is on 'cuda'"):
            llama.generate("Once", **{name: value})
