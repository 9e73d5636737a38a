"""The `openai` package calls /v1/responses: its requests are understood, and it reads the objects and events."""

import json

import openai
import pytest
from pydantic import BaseModel

from llama3 import Llama
from llama3.model_names import ALIASES

MODEL = ALIASES[0]
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Known(BaseModel):
    known: bool


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(openai_client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is RoPE?"}]
    expected = Llama.load().chat(messages, max_tokens=20, seed=7)
    asked = {"model": MODEL, "instructions": "Be brief.", "input": "What is RoPE?", "max_output_tokens": 20}
    found = openai_client.responses.create(**asked, extra_body={"seed": 7})
    assert found.output_text == expected.text and found.usage.output_tokens == 20
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with openai_client.responses.stream(**asked, extra_body={"seed": 7}) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.text
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == expected.text
    plain = list(openai_client.responses.create(**asked, stream=True, extra_body={"seed": 7}))
    assert [event.sequence_number for event in plain] == list(range(len(plain)))
    assert plain[-1].response.usage == found.usage


def test_an_answer_that_is_complete_is_the_final_response(openai_client):
    schema = {"type": "object", "properties": {"known": {"type": "boolean"}}, "required": ["known"]}
    form = {"format": {"type": "json_schema", "name": "x", "schema": {**schema, "additionalProperties": False}}}
    with openai_client.responses.stream(model=MODEL, input="Is RoPE known?", text=form) as stream:
        final = stream.get_final_response()
    assert final.status == "completed" and json.loads(final.output_text).keys() == {"known"}


def test_the_answer_is_parsed_into_a_model(openai_client):
    found = openai_client.responses.parse(model=MODEL, input="Is RoPE known?", text_format=Known)
    assert isinstance(found.output_parsed, Known)


def test_a_call_is_made_and_its_result_can_be_sent_back(openai_client):
    asked = {"model": MODEL, "tools": [TOOL], "temperature": 0}
    history = [{"role": "user", "content": "What is the weather in Paris?"}]
    found = openai_client.responses.create(input=history, tool_choice="required", parallel_tool_calls=False, **asked)
    (call,) = found.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    with openai_client.responses.stream(input=history, tool_choice="required", parallel_tool_calls=False, **asked) as s:
        events = list(s)
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments and events[-1].response.output[0].arguments == call.arguments
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees, sunny"}
    again = openai_client.responses.create(
        input=[*history, call.model_dump(), output], tool_choice="none", max_output_tokens=20, **asked
    )
    assert again.output_text and again.output[0].type == "message"


@pytest.mark.parametrize(
    "more", [{"previous_response_id": "resp_1"}, {"tools": [{"type": "web_search"}]}, {"temperature": 9}]
)
def test_the_reason_of_an_error_is_in_the_exception(openai_client, more):
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.responses.create(**{"model": MODEL, "input": "a", **more})
    assert caught.value.code == "5006" and caught.value.param and next(iter(more)) in str(caught.value)


def test_log_probabilities_belong_to_the_text(openai_client):
    found = openai_client.responses.create(
        model=MODEL, input="a", max_output_tokens=5, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    (part,) = found.output[0].content
    assert "".join(one.token for one in part.logprobs) == part.text and len(part.logprobs[0].top_logprobs) == 2
