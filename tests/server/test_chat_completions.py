"""OpenAI's chat completions: what a request means, and that an answer is the same whole and streamed."""

import itertools
import json

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.openai_api.chat_completions import plain_message
from llama3.tools import read_calls
from tests.server.served import ASK, message_of, post

PATH = "/v1/chat/completions"
WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
TOOL = {"type": "function", "function": WEATHER}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
WRITTEN = '{"name":"get_weather","parameters":{"city":"Paris"}}'
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "items": {"type": "integer"}}}}


def joined(events: list[dict]) -> dict:
    """The choice of a stream, put together from its chunks."""
    choice = {"content": "", "calls": [], "logprobs": [], "finish_reason": None}
    for event in events:
        for part in event["choices"]:
            choice["content"] += part["delta"].get("content") or ""
            choice["calls"] += [call["function"] for call in part["delta"].get("tool_calls", [])]
            choice["logprobs"] += [one["token"] for one in (part.get("logprobs") or {"content": []})["content"]]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    return choice


def whole(choice: dict) -> dict:
    """A choice that was not streamed, in the form of `joined`."""
    return {
        "content": choice["message"]["content"] or "",
        "calls": [call["function"] for call in choice["message"].get("tool_calls", [])],
        "logprobs": [one["token"] for one in (choice["logprobs"] or {"content": []})["content"]],
        "finish_reason": choice["finish_reason"],
    }


@pytest.mark.parametrize("content", [None, "", "Let me look.", [{"type": "text", "text": "Let me look."}]])
@pytest.mark.parametrize("calls", [None, [], [CALL], [CALL, CALL]])
def test_text_and_calls_of_an_earlier_answer_are_both_in_the_prompt(content, calls):
    message = plain_message("/messages/0", {"role": "assistant", "content": content, "tool_calls": calls})
    assert ("Let me look." in message["content"]) == bool(content)
    assert message["content"].count(WRITTEN) == len(calls or [])


def test_older_names_of_text_and_call_are_read():
    legacy = plain_message("/messages/0", {"role": "assistant", "content": None, "function_call": CALL["function"]})
    assert legacy["content"] == WRITTEN
    assert (
        plain_message("/messages/0", {"role": "assistant", "content": None, "refusal": "I cannot."})["content"]
        == "I cannot."
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": "required", "stop": ['"param']},
        {"tools": [TOOL]},
        {"response_format": FORM},
        {"response_format": FORM, "tools": [TOOL]},
        {"response_format": FORM, "tools": [TOOL], "tool_choice": NAMED},
    ],
    ids=["text", "call", "stopped call", "call or text", "JSON", "JSON with tools", "call instead of JSON"],
)  # fmt: skip
def test_whole_and_streamed_answers_are_equal_wherever_they_are_cut(demo: Llama, more):
    for max_tokens, logprobs in ((1, False), (5, True), (9, False), (14, True), (50, False)):
        asked = {"messages": ASK, "max_tokens": max_tokens, "seed": 1, "logprobs": logprobs, **more}
        one, streamed = post(demo, PATH, asked, {**asked, "stream": True})
        assert one.status == streamed.status == 200
        found = whole(one.json()["choices"][0])
        assert joined(streamed.events()) == found
        assert found["content"] or found["calls"]
        assert (found["finish_reason"] == "tool_calls") == bool(found["calls"])
        assert streamed.events()[-1]["usage"] == one.json()["usage"]


def test_identifiers_are_unique(demo: Llama):
    asked = {"messages": ASK, "max_tokens": 60, "seed": 1, "tools": [TOOL], "tool_choice": "required"}
    replies = post(demo, PATH, *[asked] * 3, *[{**asked, "stream": True}] * 3)
    answers, calls = [], []
    for reply in replies[:3]:
        answers.append(reply.json()["id"])
        calls += [call["id"] for call in reply.json()["choices"][0]["message"]["tool_calls"]]
    for reply in replies[3:]:
        (id,) = {event["id"] for event in reply.events()}
        answers.append(id)
        deltas = [event["choices"][0]["delta"] for event in reply.events()]
        calls += [call["id"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert len(set(answers)) == 6 and len(set(calls)) == len(calls) >= 6


def test_only_one_call_is_made_where_calls_may_not_be_parallel(tiny: Llama):
    """The model's weights are random, so behind a call it goes on with another one about as often as it stops."""
    asked = {"messages": ASK, "max_tokens": 600, "temperature": 5, "tools": [TOOL], "tool_choice": "required"}
    counts = []
    for parallel in (True, False):
        replies = post(tiny, PATH, *({**asked, "seed": seed, "parallel_tool_calls": parallel} for seed in range(20)))
        counts.append([len(reply.json()["choices"][0]["message"].get("tool_calls", [])) for reply in replies])
    assert max(counts[0]) > 1 and counts[1] == [1] * 20


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"best_of": 3},
        {"suffix": "x"},
        {"logit_bias": {"a": -100}},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"5000000": 1}},
        {"functions": [WEATHER]},
        {"guided_json": {}},
        {"modalities": ["text", "audio"]},
        {"tool_choice": "required"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": NAMED},
        {"response_format": {}},
        {"response_format": {"json_schema": {"type": "object"}}},
        {"parallel_tool_calls": "no", "tools": [TOOL]},
        {"top_logprobs": 3},
    ],
)
def test_a_field_that_would_change_the_answer_is_honoured_or_refused_by_name(demo: Llama, more):
    for path, prompt in ((PATH, {"messages": ASK}), ("/v1/completions", {"prompt": "a"})):
        if path == PATH or more.keys() <= {"n", "best_of", "suffix", "logit_bias", "response_format"}:
            message = message_of(*post(demo, path, {**prompt, "max_tokens": 1, **more}))
            assert next(iter(more)) in message


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "best_of": 1, "suffix": "", "logit_bias": {}, "modalities": ["text"], "functions": []},
        {"n": None, "best_of": None, "suffix": None, "logit_bias": None, "tools": None, "response_format": None},
        {"tool_choice": "none", "user": "me", "store": True, "metadata": {}, "service_tier": "auto", "unknown": 1},
    ],
)
def test_fields_that_ask_for_nothing_are_ignored(demo: Llama, more):
    plain, found = post(demo, PATH, *({"messages": ASK, "max_tokens": 2, "seed": 1, **fields} for fields in ({}, more)))
    assert found.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    ("more", "same_as"),
    [
        ({"seed": 0}, {"seed": 0}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"seed": 2**63}, {"seed": 2**63}),
        ({"top_p": 0, "seed": 1, "temperature": 2}, {"temperature": 0}),
        ({"top_k": -1, "seed": 1}, {"seed": 1}),
        ({"top_k": 0, "seed": 1}, {"seed": 1}),
        ({"top_k": 60, "seed": 1, "temperature": 2}, {"top_k": 60, "seed": 1, "temperature": 2}),
        ({"min_p": 0.9, "seed": 1, "temperature": 2}, {"min_p": 0.9, "seed": 1, "temperature": 2}),
    ],
)
def test_numbers_mean_what_they_mean_at_openai_and_vllm(demo: Llama, more, same_as):
    (reply,) = post(demo, PATH, {"messages": ASK, "max_tokens": 6, **more})
    assert reply.json()["choices"][0]["message"]["content"] == demo.chat(ASK, max_tokens=6, **same_as).text


def test_a_max_tokens_of_minus_one_is_all_that_the_window_leaves(tiny: Llama):
    window = tiny.config.max_seq_len
    asked = {"max_tokens": -1, "temperature": 0}
    prompts = [[65] * n for n in (window - 7, window - 1, window)]
    *fit, full = post(tiny, "/v1/completions", *({"prompt": prompt, **asked} for prompt in prompts))
    assert [reply.json()["usage"]["total_tokens"] for reply in fit] == [window, window]
    assert full.status == 413 and full.json()["error"]["code"] == 5021


@pytest.mark.parametrize(
    "more",
    [{"max_tokens": -2}, {"max_tokens": 0}, {"top_k": -2}, {"seed": 2**64}, {"top_p": -0.1}, {"min_p": 2}],
)
def test_numbers_without_a_meaning_are_refused_by_name(demo: Llama, more):
    assert f"/{next(iter(more))}'" in message_of(*post(demo, PATH, {"messages": ASK, **more}))


def test_the_hosted_models_ranges_stay_on_its_own_route(demo: Llama):
    from tests.server.asgi import RUN

    for more in ({"seed": 0}, {"top_p": 0}, {"top_k": -1}, {"top_k": 0}, {"max_tokens": -1}):
        (reply,) = post(demo, RUN, {"prompt": "a", "max_tokens": 1, **more})
        assert reply.status == 400 and reply.json()["errors"][0]["code"] == 5006 and "error" not in reply.json()


def test_the_developer_role_is_the_system_role(demo: Llama):
    dialogs = [[{"role": role, "content": "Answer in one word."}, *ASK] for role in ("developer", "system")]
    a, b = post(demo, PATH, *({"messages": dialog, "max_tokens": 6, "seed": 1} for dialog in dialogs))
    assert a.json()["choices"] == b.json()["choices"] and a.json()["usage"] == b.json()["usage"]


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
def test_a_logit_bias_forbids_or_favours_a_token(tiny: Llama, path):
    asked = {"messages": ASK, "prompt": "a", "max_tokens": 8, "temperature": 0}
    plain, favoured, both = post(
        tiny, path, *({**asked, "logit_bias": bias} for bias in ({}, {"65": 100}, {"65": 100, "66": 100.0, "67": -100}))
    )
    texts = [json.dumps(reply.json()["choices"]) for reply in (plain, favoured, both)]
    assert "A" * 8 in texts[1] and "A" * 8 not in texts[0] and "C" not in texts[2]


def test_a_json_schema_without_a_schema_is_any_object(demo: Llama):
    (reply,) = post(demo, PATH, {"messages": ASK, "max_tokens": 1, "response_format": {"type": "json_schema"}})
    assert reply.json()["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
def test_the_usage_of_a_stream_is_a_chunk_of_its_own_for_those_who_ask(demo: Llama, path):
    asked = {"messages": ASK, "prompt": "a", "max_tokens": 3, "seed": 1, "stream": True}
    unasked, asked_for = post(demo, path, asked, {**asked, "stream_options": {"include_usage": True}})
    *chunks, last = asked_for.events()
    assert last["choices"] == [] and last["usage"] == unasked.events()[-1]["usage"]
    assert all(chunk["choices"] and chunk.get("usage") is None for chunk in chunks)
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1


def test_the_calls_that_were_cut_short_are_the_text_that_was_generated(demo: Llama):
    """Whatever max_tokens, the content is a beginning of the answer, or the answer is its calls."""
    asked = {"messages": ASK, "seed": 1, "temperature": 0, "tools": [TOOL], "tool_choice": "required"}
    *cut, full = post(demo, PATH, *({**asked, "max_tokens": n} for n in (1, 4, 8, 12, 200)))
    calls = [call["function"] for call in full.json()["choices"][0]["message"]["tool_calls"]]
    written = [{"name": call["name"], "parameters": json.loads(call["arguments"])} for call in calls]
    text = "; ".join(json.dumps(call, separators=(",", ":")) for call in written)
    assert len(read_calls(text)) == len(calls)
    contents = [reply.json()["choices"][0]["message"]["content"] for reply in cut]
    assert all(text.startswith(content) for content in contents if content is not None)
    assert all(b.startswith(a) for a, b in itertools.pairwise(contents) if b is not None)
