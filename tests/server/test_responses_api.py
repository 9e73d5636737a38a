"""OpenAI's Responses API: which items and fields are understood, and that the events tell what the response holds."""

import json

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.openai_api.responses_input import check_input
from tests.server.asgi import Reply
from tests.server.served import ASK, message_of, post

PATH = "/v1/responses"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
CALL = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"city":"Paris"}'}
WRITTEN = '{"name":"get_weather","parameters":{"city":"Paris"}}'
FORM = {"type": "json_schema", "name": "x", "schema": {"type": "array", "items": {"type": "integer"}}}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "12 degrees"}


def events_of(reply: Reply) -> list[dict]:
    """The events of a stream. The name of each is its type, and they are numbered."""
    *events, rest = reply.body.decode().split("\n\n")
    assert reply.status == 200 and rest == ""
    found = []
    for i, event in enumerate(events):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}" and found[-1]["sequence_number"] == i
    return found


def replayed(events: list[dict]) -> list[dict]:
    """The output, put together from the events as a client does."""
    output: list[dict] = []
    for event in events:
        kind, index = event["type"].removeprefix("response."), event.get("output_index")
        if kind == "output_item.added":
            assert index == len(output) and event["item"]["status"] == "in_progress"
            output.append(event["item"])
        elif kind == "content_part.added":
            output[index]["content"].append(event["part"])
        elif kind == "output_text.delta":
            part = output[index]["content"][event["content_index"]]
            part["text"] += event["delta"]
            part["logprobs"] = part["logprobs"] + event["logprobs"]
        elif kind == "output_text.done":
            part = output[index]["content"][event["content_index"]]
            assert (part["text"], part["logprobs"]) == (event["text"], event["logprobs"])
        elif kind == "content_part.done":
            assert output[index]["content"][event["content_index"]] == event["part"]
        elif kind == "function_call_arguments.delta":
            output[index]["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert output[index]["arguments"] == event["arguments"]
        elif kind == "output_item.done":
            assert {**output[index], "status": event["item"]["status"]} == event["item"]
            output[index] = event["item"]
        else:
            assert kind in ("created", "in_progress", "completed", "incomplete"), kind
    return output


def comparable(output: list[dict]) -> list[dict]:
    """The output without what differs between equal answers: ids, and the rounding of logprobs."""
    out = [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in output]
    for item in out:
        for part in item.get("content", []):
            part["logprobs"] = [one["token"] for one in part["logprobs"]]
    return out


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "get_weather"}, "text": {"format": FORM}},
        {"text": {"format": FORM}},
    ],
    ids=["text", "call", "call or text", "call instead of JSON", "JSON"],
)
def test_the_events_replay_the_response_wherever_it_is_cut(demo: Llama, more):
    for n, top_logprobs in ((1, None), (5, 2), (9, None), (14, 1), (50, None)):
        asked = {"input": "What is RoPE?", "max_output_tokens": n, "seed": 1, "top_logprobs": top_logprobs, **more}
        whole, streamed = post(demo, PATH, asked, {**asked, "stream": True})
        events = events_of(streamed)
        assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
        last = events[-1]["response"]
        assert replayed(events) == last["output"] and last["output"]
        assert events[-1]["type"] == "response." + last["status"]
        found = whole.json()
        assert comparable(found["output"]) == comparable(last["output"])
        same = ("status", "usage", "incomplete_details", "seed", "tools", "tool_choice", "text", "max_output_tokens")
        assert [found[name] for name in same] == [last[name] for name in same]
        assert (found["status"] == "incomplete") == (found["incomplete_details"] is not None)


def test_text_and_input_items_are_the_messages_of_a_dialogue():
    parts = [{"type": "input_text", "text": "Weather in "}, {"type": "input_text", "text": "Paris?"}]
    said = [{"type": "output_text", "text": "Let me look.", "annotations": []}]
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": parts},
        {"type": "message", "role": "assistant", "content": said, "id": "msg_1", "status": "completed"},
        CALL,
        {**CALL, "call_id": "d"},
        RESULT,
        {**RESULT, "call_id": "d", "output": [{"type": "input_text", "text": "13 degrees"}]},
        CALL,
    ]
    assert check_input({"input": items, "instructions": "You are kind."}) == [
        {"role": "system", "content": "You are kind."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": f"Let me look.\n\n{WRITTEN}; {WRITTEN}"},
        {"role": "tool", "content": "12 degrees"},
        {"role": "tool", "content": "13 degrees"},
        {"role": "assistant", "content": WRITTEN},
    ]


def test_the_prompt_is_that_of_the_chat_completions(demo: Llama):
    (chat,) = post(demo, "/v1/chat/completions", {"messages": ASK, "max_tokens": 9, "seed": 3})
    (found,) = post(demo, PATH, {"input": ASK, "max_output_tokens": 9, "seed": 3})
    assert found.json()["output"][0]["content"][0]["text"] == chat.json()["choices"][0]["message"]["content"]
    assert found.json()["usage"]["input_tokens"] == chat.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {"type": "file_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, None),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [*ASK, {"content": "a"}]}, "input[1].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{**CALL, "arguments": "{"}]}, "input[0]"),
        ({"instructions": 5}, "instructions"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": ASK}, "messages"),
        ({"include": 5}, "include"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(demo: Llama, more, param):
    (reply,) = post(demo, PATH, {"input": "a", "max_output_tokens": 1, **more})
    assert message_of(reply) and reply.json()["error"]["param"] == param, reply.body


def test_fields_that_ask_for_nothing_are_ignored(demo: Llama):
    nothing = {
        "store": False,
        "background": False,
        "previous_response_id": None,
        "truncation": "disabled",
        "user": "me",
    }
    nothing |= {
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "text": {"format": {"type": "text"}},
    }
    plain, found = post(
        demo, PATH, *({"input": "a", "max_output_tokens": 3, "seed": 1, **more} for more in ({}, nothing))
    )
    assert comparable(found.json()["output"]) == comparable(plain.json()["output"])
    assert found.json()["metadata"] == {"a": "b"}


def test_an_error_that_ends_a_stream_is_its_last_event(demo: Llama, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(demo.model, "step", fail)
    (reply,) = post(demo, PATH, {"input": "a", "stream": True})
    last = events_of(reply)[-1]
    assert last["type"] == "error" and last["message"] == last["error"]["message"] == "AiError: no room"
