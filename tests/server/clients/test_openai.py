"""The `openai` package calls the server: its requests are understood, and the responses have the fields it reads."""

import json
import math
from functools import partial

import openai
import pytest

from llama3 import Llama
from llama3.model_names import MODELS
from tests.server.clients.conftest import the_rest_is_not_generated
from tests.server.running import LONG

MODEL = MODELS[0]
ASK = [{"role": "user", "content": "What is RoPE?"}]
GO_ON = [{"role": "user", "content": LONG["prompt"]}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"about": {"enum": ["RoPE", "the sampler"]}, "known": {"type": "boolean"}},
    "required": ["about", "known"],
    "additionalProperties": False,
}


def ask(client, **more):
    return client.chat.completions.create(model=MODEL, messages=ASK, **{"max_tokens": 20, **more})


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(openai_client):
    expected = Llama.load().chat(ASK, max_tokens=20, seed=7)
    found = ask(openai_client, seed=7)
    assert found.choices[0].message.content == expected.text and found.choices[0].finish_reason == "length"
    assert found.usage.total_tokens == expected.usage.total_tokens
    pieces = list(ask(openai_client, seed=7, stream=True, stream_options={"include_usage": True}))
    *pieces, usage = pieces
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.text
    assert pieces[-1].choices[0].finish_reason == "length" and pieces[-1].usage is None
    assert usage.choices == [] and usage.usage.completion_tokens == 20


def test_the_text_ends_before_a_stop_string(openai_client):
    found = ask(openai_client, temperature=0, stop=[" position"], max_tokens=60)
    assert found.choices[0].finish_reason == "stop" and " position" not in found.choices[0].message.content


def test_null_counts_as_absent_and_content_may_come_in_parts(openai_client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "RoPE?"}]}]
    a = openai_client.chat.completions.create(
        model=MODEL, messages=parts, temperature=0, max_completion_tokens=9, stop=None, extra_body={"top_k": None}
    )
    assert a.choices[0].message.content == ask(openai_client, temperature=0, max_tokens=9).choices[0].message.content


def test_json_follows_the_schema(openai_client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    for stream in (False, True):
        found = ask(openai_client, response_format=form, temperature=1, seed=3, stream=stream, max_tokens=99)
        text = "".join(p.choices[0].delta.content or "" for p in found) if stream else found.choices[0].message.content
        assert json.loads(text).keys() == {"about", "known"}
    cut = ask(openai_client, response_format=form, max_tokens=2)
    assert cut.choices[0].finish_reason == "length"


def test_a_required_tool_call_is_made_and_its_result_can_be_sent_back(openai_client):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    parameters = {"model": MODEL, "tools": [TOOL], "temperature": 0, "max_tokens": 90}
    found = openai_client.chat.completions.create(messages=messages, tool_choice="required", **parameters)
    (call,) = found.choices[0].message.tool_calls
    assert found.choices[0].finish_reason == "tool_calls" and found.choices[0].message.content is None
    assert call.function.name == "get_weather" and json.loads(call.function.arguments).keys() == {"city"}
    pieces = list(
        openai_client.chat.completions.create(messages=messages, tool_choice="required", stream=True, **parameters)
    )
    (streamed,) = [piece for piece in pieces if piece.choices[0].delta.tool_calls]
    again = streamed.choices[0].delta.tool_calls[0].function
    assert (again.name, again.arguments) == (call.function.name, call.function.arguments)
    messages += [found.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees, sunny"}]
    again = openai_client.chat.completions.create(messages=messages, tool_choice="none", **parameters)
    assert again.choices[0].message.content and again.choices[0].message.tool_calls is None


def test_logprobs_fit_the_text(openai_client):
    found = ask(openai_client, logprobs=True, top_logprobs=5, temperature=0, max_tokens=8)
    content = found.choices[0].logprobs.content
    assert "".join(one.token for one in content) == found.choices[0].message.content and len(content) == 8
    for one in content:
        assert (
            one.logprob == one.top_logprobs[0].logprob and len(one.top_logprobs) == 5
        )  # greedy: the most likely token
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1 + 1e-6
        assert bytes(one.bytes).decode() == one.token
    pieces = list(ask(openai_client, logprobs=True, temperature=0, max_tokens=8, stream=True))
    tokens = [one.token for p in pieces if p.choices[0].logprobs for one in p.choices[0].logprobs.content]
    assert tokens == [one.token for one in content]


def test_raw_text_is_continued(openai_client):
    expected = Llama.load().generate("The KV cache", temperature=0, max_tokens=12)
    ask_raw = openai_client.completions.create
    parameters = {"model": MODEL, "prompt": "The KV cache", "temperature": 0, "max_tokens": 12}
    found = ask_raw(**parameters, logprobs=2)
    assert found.choices[0].text == expected.text == "".join(found.choices[0].logprobs.tokens)
    assert found.choices[0].logprobs.text_offset[1] == len(found.choices[0].logprobs.tokens[0])
    assert "".join(chunk.choices[0].text for chunk in ask_raw(**parameters, stream=True)) == expected.text
    with pytest.raises(openai.BadRequestError):
        ask_raw(**{**parameters, "prompt": ""})


def test_the_models_are_listed(openai_client):
    assert [model.id for model in openai_client.models.list()] == list(MODELS)


@pytest.mark.parametrize(
    ("more", "error", "code"),
    [
        ({"temperature": 5.1}, openai.BadRequestError, 5006),
        ({"model": "gpt-4"}, openai.BadRequestError, 5007),
        ({"n": 2}, openai.BadRequestError, 5006),
        ({"messages": []}, openai.BadRequestError, 5006),
        ({"messages": [{"role": "user"}], "tools": [{"type": "function"}]}, openai.BadRequestError, 5006),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, 5006),
        ({"stop": ["x"] * 17}, openai.BadRequestError, 5006),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "no"}}}, openai.BadRequestError, 5006),
        ({"extra_body": {"lora": "nobody"}}, openai.BadRequestError, 5006),
        ({"max_tokens": 100_000}, openai.APIStatusError, 5021),
    ],
)  # fmt: skip
def test_errors_have_the_services_codes(openai_client, more, error, code):
    with pytest.raises(error) as caught:
        openai_client.chat.completions.create(**{"model": MODEL, "messages": ASK, "max_tokens": 5, **more})
    assert caught.value.body["code"] == code == caught.value.response.json()["errors"][0]["code"]
    assert caught.value.body["message"] in str(caught.value)


def test_a_wrong_token_is_refused(server):
    client = openai.OpenAI(api_key="wrong", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        ask(client)


def test_a_stream_that_is_closed_ends_its_request(openai_client, address):
    sampling = {"model": MODEL, "temperature": LONG["temperature"], "stream": True}
    chat = partial(openai_client.chat.completions.create, messages=GO_ON, max_tokens=LONG["max_tokens"])
    responses = partial(openai_client.responses.create, input="Go on", max_output_tokens=LONG["max_tokens"])
    raw = partial(openai_client.completions.create, prompt="Go on", max_tokens=LONG["max_tokens"])
    seeds = [LONG["seed"], LONG["seed"], 1]  # with which the demo does not stop by itself
    requests = [partial(one, extra_body={"seed": seed}) for one, seed in zip((chat, responses, raw), seeds)]
    for request in requests:
        with the_rest_is_not_generated(address):
            stream = request(**sampling)
            next(stream)
            stream.close()


def test_a_request_that_times_out_ends(openai_client, address):
    with the_rest_is_not_generated(address), pytest.raises(openai.APITimeoutError):
        openai_client.chat.completions.create(
            model=MODEL, messages=GO_ON, max_tokens=LONG["max_tokens"], temperature=5, seed=LONG["seed"], timeout=0.1
        )
