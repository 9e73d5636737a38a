"""`Llama` as an embedder uses it: the same answer from stream, generate and chat, alone and beside other requests."""

import gc
import itertools
import json
import threading
import weakref
from array import array
from collections import deque
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3 import Llama, RequestError
from llama3.llama import FORWARD_CHUNK, PARAMETERS
from llama3.philox import uniform
from llama3.sampler import SequenceSampler
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=1024)
    folder = write_hf(tmp_path_factory.mktemp("llama"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=3)


@pytest.fixture(scope="module")
def without_tokenizer(tmp_path_factory) -> Llama:
    """A checkpoint without a tokenizer."""
    config = tiny_config()
    return Llama.load(write_hf(tmp_path_factory.mktemp("ids"), config, random_tensors(config)))


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=20), st.integers(1, 30), st.floats(0, 5), st.integers(0, 2**64 - 1))
def test_stream_and_generate_give_the_same_answer(llama, prompt, n, temperature, seed):
    parameters = {"max_tokens": n, "temperature": temperature, "seed": seed}
    stream = llama.stream(prompt, **parameters)
    text = "".join(piece.text for piece in stream)
    whole = llama.generate(prompt, **parameters)
    assert (text, stream.tokens, stream.finish_reason, stream.usage, stream.seed) == (
        whole.text,
        whole.tokens,
        whole.finish_reason,
        whole.usage,
        seed,
    )
    assert whole.usage.prompt_tokens == len(llama.encode(prompt)) and whole.usage.completion_tokens == len(whole.tokens)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert text == llama.tokenizer.decode(whole.tokens)


def test_the_seed_that_was_drawn_repeats_the_text(llama):
    first = llama.generate("Once", max_tokens=40, temperature=2.0)
    again = llama.generate("Once", max_tokens=40, temperature=2.0, seed=first.seed)
    other = llama.generate("Once", max_tokens=40, temperature=2.0)
    assert again == first and other.tokens != first.tokens


def test_greedy_tokens_are_the_largest_logits(llama):
    prompt = llama.encode("Once")
    completion = llama.generate("Once", max_tokens=20, temperature=0)
    logits = llama.logits([*prompt, *completion.tokens])
    assert logits.shape == (len(prompt) + 20, TINY_VOCAB) and logits.dtype == np.float32
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == completion.tokens


def test_logprobs_are_those_of_the_logits(llama):
    completion = llama.generate("Once", max_tokens=8, logprobs=3, temperature=1.5, repetition_penalty=1.7, seed=1)
    logits = llama.logits([*llama.encode("Once"), *completion.tokens]).astype(np.float64)[-9:-1]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for piece, row in zip(completion.pieces, expected, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token], abs=1e-4)
        assert [token for token, _ in piece.top_logprobs] == np.argsort(-row, kind="stable")[:3].tolist()


def test_a_long_text_is_computed_in_chunks(llama):
    tokens = np.random.RandomState(0).randint(0, 256, FORWARD_CHUNK + 100).tolist()
    blocks = []
    logits = llama.logits(tokens, trace=lambda name, value: blocks.append(len(value)) if name == "norm" else None)
    assert blocks == [FORWARD_CHUNK, 100]
    whole = llama.logits(tokens[:50])
    np.testing.assert_allclose(logits[:50], whole, rtol=1e-3, atol=1e-4)


def test_text_begins_with_exactly_one_bos(llama):
    bos = llama.tokenizer.bos_id
    assert llama.encode("a") == llama.encode("<|begin_of_text|>a") == [bos, 97]
    assert llama.encode_chat(HELLO).count(bos) == 1
    assert llama.encode_chat([{"role": "user", "content": "<|begin_of_text|>"}]).count(bos) == 1


def test_token_ids_are_taken_as_they_are(llama):
    text = llama.generate("Once", max_tokens=5, seed=1)
    assert llama.generate(llama.encode("Once"), max_tokens=5, seed=1) == text
    assert llama.generate(np.array(llama.encode("Once")), max_tokens=5, seed=1) == text


def test_chat_is_generate_on_the_template(llama):
    answer = llama.chat(HELLO, max_tokens=12, seed=4)
    assert answer == llama.generate(llama.encode_chat(HELLO), max_tokens=12, seed=4)
    assert answer.text == "".join(piece.text for piece in llama.stream_chat(HELLO, max_tokens=12, seed=4))


def test_a_stop_token_ends_the_text_and_is_not_in_it(llama):
    plain = llama.generate("Once", max_tokens=30, seed=3, temperature=3.0)
    stop = plain.tokens[10]
    end = plain.tokens.index(stop)
    object.__setattr__(llama.checkpoint, "stop_ids", frozenset([stop]))
    try:
        stopped = llama.generate("Once", max_tokens=30, seed=3, temperature=3.0)
    finally:
        object.__setattr__(llama.checkpoint, "stop_ids", llama.tokenizer.stop_ids)
    assert stopped.finish_reason == "stop" and stopped.tokens == plain.tokens[:end]
    assert stopped.text == llama.tokenizer.decode(plain.tokens[:end])
    assert stopped.pieces[-1].token == stop and stopped.pieces[-1].finish_reason == "stop"


def test_a_stop_string_ends_the_text_also_across_tokens(llama):
    plain = llama.generate("Once", max_tokens=60, seed=3, temperature=3.0).text
    stop = plain[20:24]
    stopped = llama.generate("Once", max_tokens=60, seed=3, temperature=3.0, stop=["never said", stop])
    assert stopped.finish_reason == "stop" and stopped.text == plain[: plain.index(stop)]
    assert stopped.pieces[-1].finish_reason == "stop"
    assert not llama._engine.busy  # its slot is free for the next


def test_a_stop_string_on_the_last_token_allowed_is_still_a_stop(llama):
    plain = llama.generate("Once", max_tokens=3, seed=3, temperature=3.0)
    stopped = llama.generate("Once", max_tokens=3, seed=3, temperature=3.0, stop=plain.pieces[-1].text)
    assert stopped.finish_reason == stopped.pieces[-1].finish_reason == "stop"


def test_a_stream_counts_its_own_pieces_while_another_stream_runs_the_steps(llama):
    parameters = {"max_tokens": 40, "seed": 3, "temperature": 3.0}
    stop = llama.generate("Once", **parameters).text[5:8]
    alone = llama.generate("Once", stop=stop, **parameters)
    stopped, other = llama.stream("Once", stop=stop, **parameters), llama.stream("Twice", **parameters)
    assert len(list(other)) == 40 and stopped.tokens == [] and stopped.usage.completion_tokens == 0
    assert stopped.completion() == alone


def test_a_closed_stream_yields_no_more_pieces(llama):
    stream, other = llama.stream("Once", max_tokens=9), llama.stream("Once", max_tokens=9)
    next(stream), next(other), next(other)
    stream.close()
    assert list(stream) == [] and stream.finish_reason == "cancelled" and len(stream.tokens) == 1


def test_two_streams_can_be_read_alternately(llama):
    parameters = [{"max_tokens": 20, "seed": seed, "temperature": 2.0} for seed in range(5)]  # more than the slots
    expected = [llama.generate("Once", **p).tokens for p in parameters]
    streams = [llama.stream("Once", **p) for p in parameters]
    for _ in itertools.zip_longest(*streams):
        pass
    assert [stream.tokens for stream in streams] == expected


def test_threads_share_one_batch(llama, monkeypatch):
    rows, step = [], llama.model.step
    monkeypatch.setattr(llama.model, "step", lambda batch, *rest: rows.append(batch.counts) or step(batch, *rest))
    expected = [llama.generate("Once", max_tokens=20, seed=seed, temperature=2.0).text for seed in range(8)]
    got = [""] * 8

    def ask(seed: int) -> None:
        got[seed] = llama.generate("Once", max_tokens=20, seed=seed, temperature=2.0).text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected
    assert any(counts == (1, 1, 1) for counts in rows)  # as many as there are slots, in one step


def test_the_same_seed_gives_the_same_text_in_a_larger_batch(tmp_path):
    """In a larger batch a row's logits are rounded differently. This may change a token only if u is next to a border.

    The test prints how many texts differ, and checks that each first differs at a draw whose u is within 1e-5 of a
    border between two tokens.
    """
    config = tiny_config(vocab_size=TINY_VOCAB)
    llama = Llama.load(write_hf(tmp_path, config, random_tensors(config)), slots=8)
    parameters = [{"max_tokens": 30, "temperature": 1.0, "seed": seed} for seed in range(16)]
    alone = [llama.generate([1, 2, 3], **p).tokens for p in parameters]
    streams = [llama.stream([1, 2, 3], **p) for p in parameters]
    for _ in itertools.zip_longest(*streams):
        pass
    different = [i for i, stream in enumerate(streams) if stream.tokens != alone[i]]
    print(f"{len(different)} of {len(streams)} texts differ from those alone")
    for i in different:
        at = next(n for n, (a, b) in enumerate(zip(alone[i], streams[i].tokens)) if a != b)
        logits = llama.logits([1, 2, 3, *alone[i][:at]])[-1].astype(np.float64)
        ends = np.cumsum(np.exp(logits - logits.max()))
        assert np.abs(ends / ends[-1] - uniform(i, at)).min() <= 1e-5


def test_a_stream_that_is_dropped_or_closed_frees_its_slot(llama):
    for _ in range(10):
        next(llama.stream("Once", max_tokens=500))
    gc.collect()
    assert not llama._engine.busy
    closed = llama.stream("Once", max_tokens=500)
    next(closed)
    closed.close()
    assert list(closed) == [] and closed.finish_reason == "cancelled"
    assert not llama._engine.busy


def test_ended_requests_are_freed_without_the_garbage_collector(llama):
    """A reference cycle would keep large arrays or a grammar in memory until the next garbage collection."""
    kinds = [{}, {"json_schema": {"type": "boolean"}}] if find_spec("llguidance") else [{}]

    def samplers():
        return sum(isinstance(thing, SequenceSampler) for thing in gc.get_objects())

    gc.collect()
    of_other_models = samplers() - sum(sampler is not None for sampler in llama._engine.samplers)
    gc.disable()
    try:
        for kind in kinds:
            ended = []
            for _ in range(8):
                stream = llama.stream("Once", max_tokens=5, **kind)
                ended.append(weakref.ref(stream._request))
                next(stream)
            del stream
            kept = sum(request() is not None for request in ended)
            assert kept <= len(llama._engine.slot_requests)  # their prompts may be the beginning of the next
        assert samplers() - of_other_models <= len(llama._engine.slot_requests)
    finally:
        gc.enable()


def test_on_prompt_reports_the_progress_of_the_prompt(llama):
    seen, chunk = [], llama.model.prefill_chunk
    llama.generate([97] * (chunk + 9), max_tokens=1, on_prompt=lambda done, total: seen.append((done, total)))
    assert seen == [(chunk, chunk + 9), (chunk + 9, chunk + 9)]


def test_without_a_tokenizer_ids_go_in_and_out(without_tokenizer):
    completion = without_tokenizer.generate([1, 2, 3], max_tokens=5, temperature=0)
    assert len(completion.tokens) == 5 and completion.text == ""
    for call in (
        lambda: without_tokenizer.generate("text"),
        lambda: without_tokenizer.chat(HELLO),
        lambda: without_tokenizer.generate([1], stop="x"),
    ):
        with pytest.raises(RequestError, match="tokenizer"):
            call()


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda llama: llama.generate("x", max_token=3), "no such parameter: max_token"),
        (lambda llama: llama.generate("x", temperature=float("nan")), "temperature"),
        (lambda llama: llama.generate("x", top_p=1.5), "top_p"),
        (lambda llama: llama.generate("x", seed=-1), "seed"),
        (lambda llama: llama.generate("x", max_tokens=0), "max_tokens is 0"),
        (lambda llama: llama.generate("x", max_tokens=1024), "the context window holds 1024"),
        (lambda llama: llama.generate([1] * 1024), "the prompt has 1024 tokens, and the context window holds 1024"),
        (lambda llama: llama.generate("x", grammar=5), "grammar is int; expected text"),
        (lambda llama: llama.generate("x", tools=[]), "no such parameter: tools"),
        (lambda llama: llama.chat(HELLO, tool=[]), "no such parameter: tool; there are tools, tool_choice, max_tokens"),
        (lambda llama: llama.chat(HELLO, tools=5), "tools is int; expected a list"),
        (lambda llama: llama.chat(HELLO, tools=[TOOL], grammar="x"), "grammar cannot be combined with tools"),
        (lambda llama: llama.generate("x", json_schema={}, grammar="x"), "grammar cannot be combined with json_schema"),
        (lambda llama: llama.chat(HELLO, tool_choice="required"), "'required', and there are no tools"),
        (lambda llama: llama.generate([]), "the prompt is empty"),
        (lambda llama: llama.generate([TINY_VOCAB]), f"is {TINY_VOCAB}; expected an id"),
        (lambda llama: llama.generate(5), "the prompt is int"),
        (lambda llama: llama.generate(None), "prompt is NoneType"),
        (lambda llama: llama.generate(b"x"), "prompt is bytes"),
        (lambda llama: llama.generate("x", stop=5), "stop"),
        (lambda llama: llama.chat([{"role": "user"}]), "content is missing"),
        (lambda llama: llama.chat([]), "messages is empty"),
        (lambda llama: llama.generate("a<|begin_of_text|>"), "<|begin_of_text|> after its beginning"),
        (lambda llama: llama.logits([]), "the prompt is empty"),
        (lambda llama: llama.logits([-1]), "is -1; expected an id"),
        (lambda llama: llama.logits([1] * 1025), "the context window holds 1024"),
        (lambda llama: Llama.load(llama.checkpoint.path, device="tpu"), "device is 'tpu'"),
        (lambda llama: Llama.load(llama.checkpoint.path, slots=0), "slots is 0"),
    ],
)
def test_bad_input_is_explained_in_one_line(llama, call, named):
    with pytest.raises(RequestError) as error:
        call(llama)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_none_is_the_default_of_every_parameter(llama):
    expected = llama.generate("Once", seed=1, max_tokens=5)
    names = set(PARAMETERS) - {"seed", "max_tokens"}
    assert llama.generate("Once", seed=1, max_tokens=5, **dict.fromkeys(names)) == expected
    assert llama.chat(HELLO, seed=1, max_tokens=5, tools=None, tool_choice=None) == llama.chat(
        HELLO, seed=1, max_tokens=5
    )
    assert len(llama.generate("Once", max_tokens=None, stop_ids=None).tokens) <= 256


def test_a_max_tokens_that_nobody_set_is_cut_to_the_window(llama):
    stream = llama.stream([1] * 1000)
    assert stream.max_tokens == 24 and stream.completion().usage.total_tokens <= 1024
    assert llama.stream([1] * 100).max_tokens == 256


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array])
def test_numbers_of_numpy_are_taken_wherever_pythons_are(llama, number):
    ids = llama.encode("Once")
    given = {"max_tokens": 5, "seed": 1, "top_k": 9, "logprobs": 2, "temperature": 2, "top_p": 1, "presence_penalty": 1}
    llama.generate(ids, **given)  # from now on the prompt is in the cache: every run computes the same rows
    expected = llama.generate(ids, **given)
    of_numpy = {name: number(value) for name, value in given.items()}
    for prompt in (np.array(ids), [*map(np.int32, ids)], tuple(ids), array("i", ids), deque(ids)):
        found = llama.generate(prompt, stop_ids=[number(3)], logit_bias={4: number(0)}, **of_numpy)
        assert found == expected and json.dumps(found.as_dict())
        assert np.array_equal(llama.logits(prompt), llama.logits(ids))
    assert {type(token) for token in found.tokens} == {int} and type(found.seed) is int


def test_a_failing_step_raises_and_the_next_request_works(llama, monkeypatch):
    step = llama.model.step
    monkeypatch.setattr(llama.model, "step", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError, match="no room"):
        llama.generate("x", max_tokens=3)
    monkeypatch.setattr(llama.model, "step", step)
    assert llama.generate("x", max_tokens=3, seed=1).finish_reason == "length"


def test_ctrl_c_in_a_step_leaves_the_llama_usable(llama, monkeypatch):
    step = llama.model.step
    expected = llama.generate("x", max_tokens=6, seed=1)
    stream = llama.stream("x", max_tokens=6, seed=1)
    first = next(stream)
    monkeypatch.setattr(llama.model, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.setattr(llama.model, "step", step)
    assert [first, *stream] == expected.pieces
