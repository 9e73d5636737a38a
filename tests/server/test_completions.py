"""OpenAI's older completions: every form of a prompt, and the log-probabilities of the prompt's own tokens."""

import asyncio
import json

import numpy as np
import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.server.app import make_app
from llama3.server.service import Service
from tests.server.asgi import call
from tests.server.served import message_of, post

PATH = "/v1/completions"
TEXT = "The KV cache keeps the keys and values"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(T, vocab_size) float32 -> the same in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def joined(events: list[dict]) -> dict[int, dict]:
    """The choices of a stream, each put together from its chunks."""
    choices: dict[int, dict] = {}
    for event in events:
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {**part, "text": "", "logprobs": None})
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            for name, values in (part["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                choice["logprobs"][name] += values
    return choices


def test_each_form_of_a_prompt_gives_the_choices_that_its_prompts_give_alone(demo: Llama):
    a, b = demo.encode("The KV cache"), demo.encode("RoPE")
    more = {"max_tokens": 7, "seed": 3}
    texts = [demo.generate(ids, **more).text for ids in (a, b)]
    forms = [("The KV cache", 1), (["The KV cache"], 1), (a, 1), ([a], 1), (["The KV cache", "RoPE"], 2), ([a, b], 2)]
    replies = post(demo, PATH, *({"prompt": form, **more} for form, _ in forms))
    for reply, (form, n) in zip(replies, forms, strict=True):
        choices = reply.json()["choices"]
        assert [choice["index"] for choice in choices] == list(range(n)), form
        assert [choice["text"] for choice in choices] == texts[:n], form
        usage = reply.json()["usage"]
        assert usage["prompt_tokens"] == sum(map(len, (a, b)[:n])) and usage["completion_tokens"] == 7 * n


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "'null' not in 'string'"),
        ("", "'/prompt' must not be shorter than 1 character"),
        ([], "'/prompt' has 0 items"),
        (["a", ""], "'/prompt/1' must not be shorter"),
        ([[]], "'/prompt/0' must not be empty"),
        ([1, "a"], "'/prompt/1', 'string' not in 'integer'"),
        (["a", 1], "'/prompt/1', 'integer' not in 'string'"),
        ([True], "'boolean' not in 'string'"),
        ([5, 10**9], "'/prompt/1' must be <= "),
        ([[5], [-1]], "'/prompt/1/0' must be >= 0"),
        ({"a": 1}, "'object' not in 'string'"),
        (["a"] * 129, "'/prompt' has 129 items"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_place(demo: Llama, prompt, message: str):
    assert message in message_of(*post(demo, PATH, {"prompt": prompt, "max_tokens": 1}))


@pytest.mark.parametrize(("length", "max_tokens"), [(2, 0), (40, 1), (520, 1)])
def test_the_loglikelihood_of_a_prompt_is_that_of_its_logits(demo: Llama, length: int, max_tokens: int):
    """As lm_eval asks for it: token ids, the last of which may be those of an answer that is being measured."""
    ids = [demo.tokenizer.bos_id, *demo.encode(TEXT * 100)[1:length]]
    sent = {"prompt": [ids], "max_tokens": max_tokens, "echo": True, "logprobs": 3, "temperature": 0}
    (reply,) = post(demo, PATH, sent)
    (choice,) = reply.json()["choices"]
    found, expected = choice["logprobs"], log_softmax(demo.logits(ids))
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(ids) + max_tokens
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    own = expected[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found["token_logprobs"][1 : len(ids)], own, rtol=0, atol=1e-5)
    for i, top in enumerate(found["top_logprobs"][1 : len(ids)]):
        assert max(top.values()) == pytest.approx(expected[i].max(), abs=1e-5)
        is_greedy = expected[i].argmax() == ids[i + 1]
        assert (found["token_logprobs"][i + 1] == max(top.values())) == is_greedy


def test_prompts_are_measured_while_answers_are_generated(tiny: Llama):
    """A model computes one thing at a time, and each request gets what it gets alone."""
    measured = {"prompt": [list(range(65, 185)) * 5, [66] * 70], "max_tokens": 0, "echo": True, "logprobs": 1}
    generated = {"prompt": "the cat", "max_tokens": 60, "temperature": 2, "seed": 4}
    alone = [post(tiny, PATH, body)[0].json()["choices"] for body in (measured, generated)]

    async def run():
        service = Service(lambda: tiny, 4, 8)
        service.llama = tiny
        app = make_app(service)
        bodies = [json.dumps(body).encode() for body in (measured, generated) * 3]
        return await asyncio.gather(*(call(app, PATH, body) for body in bodies))

    for i, reply in enumerate(asyncio.run(run())):
        for choice, expected in zip(reply.json()["choices"], alone[i % 2], strict=True):
            assert choice["text"] == expected["text"]
            if i % 2 == 0:
                found, right = (one["logprobs"]["token_logprobs"][1:] for one in (choice, expected))
                np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


def test_an_answer_that_is_a_stop_token_still_counts_as_a_token(demo: Llama):
    """lm_eval takes the last log-probability for that of the answer. Without it, it would lose one of the prompt."""
    ids = demo.encode_chat([{"role": "user", "content": "What is RoPE?"}])
    ids += demo.generate(ids, temperature=0, max_tokens=400).tokens
    (reply,) = post(demo, PATH, {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0})
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop" and len(choice["logprobs"]["tokens"]) == len(ids) + 1
    assert choice["logprobs"]["tokens"][-1] == "<|eot_id|>" and not choice["text"].endswith("<|eot_id|>")


@pytest.mark.parametrize("prompt", [TEXT, [TEXT, "naïve 日本語 🦙 text"]], ids=["one", "two"])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_the_streamed_parts_join_to_the_whole_answer(demo: Llama, prompt, echo: bool, logprobs: int | None):
    asked = {"prompt": prompt, "echo": echo, "logprobs": logprobs, "max_tokens": 12, "temperature": 3, "seed": 5}
    whole, streamed = post(demo, PATH, asked, {**asked, "stream": True})
    choices = whole.json()["choices"]
    assert streamed.events()[-1]["usage"] == whole.json()["usage"]
    texts = [prompt] if isinstance(prompt, str) else prompt
    for choice, again, text in zip(choices, joined(streamed.events()).values(), texts, strict=True):
        assert choice["text"].startswith(text) == echo
        if logprobs is not None:
            check_offsets(choice)
            for one in (choice, again):  # batches of other sizes round differently
                one["logprobs"].pop("top_logprobs")
                one["logprobs"]["token_logprobs"] = [round(x or 0, 3) for x in one["logprobs"]["token_logprobs"]]
        assert again == choice


def check_offsets(choice: dict) -> None:
    """Where a token's text is known, it stands in the choice's text at the token's offset."""
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == sorted(offsets) and offsets[0] == 0 < offsets[-1]
    for token, offset in zip(choice["logprobs"]["tokens"], offsets, strict=True):
        special = token.startswith(("bytes:", "<|"))
        assert special or choice["text"].startswith(token, offset), (token, offset)


def test_the_text_that_is_echoed_is_the_prompt_without_logprobs_too(demo: Llama):
    (reply,) = post(demo, PATH, {"prompt": TEXT, "echo": True, "max_tokens": 0})
    assert reply.json()["choices"] == [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "length"}]
    (refused,) = post(demo, PATH, {"prompt": TEXT, "max_tokens": 0})
    assert "'/max_tokens' must be >= 1" in message_of(refused)


def test_json_can_be_asked_for(demo: Llama):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    (reply,) = post(demo, PATH, {"prompt": TEXT, "response_format": form, "max_tokens": 30})
    assert reply.json()["choices"][0]["text"] in ('{"a":true}', '{"a":false}')


def test_a_window_that_is_too_short_is_refused_before_anything_is_generated(demo: Llama):
    window = demo.config.max_seq_len
    ids = [5] * window
    fits, one_more, default = post(
        demo,
        PATH,
        {"prompt": ids, "echo": True, "max_tokens": 0},
        {"prompt": ["a", [*ids, 5]], "echo": True, "max_tokens": 0},
        {"prompt": ids},
    )
    assert fits.status == 200 and one_more.status == default.status == 413
