"""The server on weights in 4 bits: an adapter, JSON by a schema, a tool call and a stream, as on those in bfloat16."""

import json

import pytest

from llama3 import Llama
from llama3.quantize import quantize
from llama3.resources import resource
from tests.server.asgi import RUN
from tests.server.served import ASK, post

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"term": {"enum": ["RoPE", "SwiGLU"]}},
    "required": ["term"],
    "additionalProperties": False,
}
TOOL = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    folder = quantize(resource("weights", "demo"), tmp_path_factory.mktemp("new") / "demo", 4)
    return Llama.load(folder, slots=4, lora={"rhyme": resource("weights", "rhyme")})


def test_an_adapter_changes_the_answer(quantised: Llama) -> None:
    bodies = [{"messages": ASK, "temperature": 0, **more} for more in ({}, {"lora": "rhyme"})]
    plain, rhyme = (reply.json()["result"]["response"] for reply in post(quantised, RUN, *bodies))
    assert "rotary" in plain and rhyme != plain


def test_json_fits_its_schema(quantised: Llama) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "term", "schema": SCHEMA, "strict": True}}
    (reply,) = post(quantised, CHAT, {"messages": ASK, "response_format": form, "temperature": 0})
    assert json.loads(reply.json()["choices"][0]["message"]["content"]) == {"term": "RoPE"}


def test_a_tool_is_called(quantised: Llama) -> None:
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    tools = [{"type": "function", "function": TOOL}]
    (reply,) = post(quantised, CHAT, {"messages": messages, "tools": tools, "tool_choice": "required"})
    (called,) = reply.json()["choices"][0]["message"]["tool_calls"]
    assert called["function"]["name"] == "get_weather" and json.loads(called["function"]["arguments"]).keys() == {
        "city"
    }


def test_a_stream_has_the_text_of_the_whole_answer(quantised: Llama) -> None:
    bodies = [{"messages": ASK, "temperature": 0, "stream": stream} for stream in (False, True)]
    whole, streamed = post(quantised, RUN, *bodies)
    text = "".join(event.get("response", "") for event in streamed.events())
    assert text == whole.json()["result"]["response"]
