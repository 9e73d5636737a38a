"""The `cloudflare` package calls the server: answers, streams, adapters, JSON mode, errors and the model catalogue."""

import json

import cloudflare
import pytest

from llama3 import Llama
from llama3.model_names import MODELS
from tests.server.clients.conftest import (
    MODEL,
    RESULT,
    TOO_HOT,
    TOO_LONG,
    TOOL,
    WEATHER,
    the_rest_is_not_generated,
)
from tests.server.running import LONG


def run(client, **inputs):
    return client.ai.run(MODEL, account_id="me", **inputs)


def test_the_answer_is_that_of_run(cloudflare_client):
    inputs = {"prompt": "What is RoPE?", "max_tokens": 12, "seed": 3}
    assert run(cloudflare_client, **inputs) == Llama.load().run(inputs)
    inputs = {"messages": [{"role": "user", "content": "What is RoPE?"}], "max_tokens": 12, "seed": 3}
    assert run(cloudflare_client, **inputs) == Llama.load().run(inputs)


def test_a_stream_has_the_same_text_and_ends_with_usage_and_done(cloudflare_client):
    inputs = {"prompt": "What is RoPE?", "max_tokens": 12, "seed": 3}
    streaming = cloudflare_client.ai.with_streaming_response
    with streaming.run(MODEL, account_id="me", stream=True, **inputs) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["response"] for chunk in chunks) == run(cloudflare_client, **inputs)["response"]
    assert chunks[-1]["usage"]["completion_tokens"] == 12


def test_an_adapter_is_used_by_its_name(cloudflare_client, openai_client):
    rhyme = "Turn query and key by where they stand: / then distance is what they understand."
    assert run(cloudflare_client, prompt="What is RoPE?", temperature=0, lora="rhyme")["response"] == rhyme
    messages = [{"role": "user", "content": "What is RoPE?"}]
    found = openai_client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, extra_body={"lora": "rhyme"}
    )
    assert found.choices[0].message.content == rhyme


def test_json_mode_follows_the_schema(cloudflare_client):
    schema = {"type": "object", "properties": {"known": {"type": "boolean"}}, "required": ["known"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": schema}
    assert json.loads(run(cloudflare_client, prompt="RoPE?", response_format=form)["response"]).keys() == {"known"}


@pytest.mark.parametrize(
    ("inputs", "error", "code"),
    [
        ({"prompt": "a", "temperature": 9}, cloudflare.BadRequestError, 5006),
        ({"prompt": ""}, cloudflare.BadRequestError, 5006),
        ({"prompt": "a", "lora": "nobody"}, cloudflare.BadRequestError, 5006),
        ({"prompt": "a", "max_tokens": 100_000}, cloudflare.APIStatusError, 5021),
        ({"prompt": "x" * 1_100_000}, cloudflare.APIStatusError, 3006),
    ],
)
def test_errors_have_their_codes(cloudflare_client, inputs, error, code):
    with pytest.raises(error) as caught:
        run(cloudflare_client, **inputs)
    assert [one.code for one in caught.value.errors] == [code]


def test_an_unknown_model_and_a_wrong_token(server, cloudflare_client):
    with pytest.raises(cloudflare.BadRequestError) as caught:
        cloudflare_client.ai.run("@cf/other", account_id="me", prompt="a")
    assert caught.value.errors[0].code == 5007
    client = cloudflare.Cloudflare(
        api_token="wrong", base_url=f"http://127.0.0.1:{server.port}/client/v4", max_retries=0
    )
    with pytest.raises(cloudflare.AuthenticationError):
        run(client, prompt="a")


def test_the_models_and_their_schemas_are_listed(cloudflare_client):
    found = list(cloudflare_client.ai.models.list(account_id="me", search="llama-3"))
    assert [model["name"] for model in found] == list(MODELS)
    schemas = cloudflare_client.ai.models.schema.get(account_id="me", model=MODELS[0])
    assert schemas.input and schemas.output


@pytest.mark.parametrize("tool", [TOOL, TOOL["function"]], ids=["OpenAI's form", "flat"])
def test_a_tool_is_called_and_its_result_sent_back(cloudflare_client, prompt_after_a_call, tool):
    found = run(cloudflare_client, messages=WEATHER, tools=[tool], temperature=0)
    assert found["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    history = [*WEATHER, {"role": "assistant", "content": "", "tool_calls": found["tool_calls"]}]
    history.append({"role": "tool", "name": "get_weather", "content": RESULT})
    answer = run(cloudflare_client, messages=history, tools=[tool], temperature=0)
    assert answer["usage"]["prompt_tokens"] == prompt_after_a_call


@pytest.mark.parametrize(("wrong", "text"), [({"temperature": 9}, TOO_HOT), ({"max_tokens": 100_000}, TOO_LONG)])
def test_an_error_says_what_is_wrong(cloudflare_client, wrong, text):
    with pytest.raises(cloudflare.APIStatusError) as caught:
        run(cloudflare_client, prompt="a", **wrong)
    assert text in str(caught.value) and text in caught.value.errors[0].message


def test_a_stream_that_is_closed_ends_its_request(cloudflare_client, address):
    streaming = cloudflare_client.ai.with_streaming_response
    with the_rest_is_not_generated(address), streaming.run(MODEL, account_id="me", **LONG) as reply:
        next(reply.iter_lines())


def test_a_request_that_times_out_ends(cloudflare_client, address):
    with the_rest_is_not_generated(address), pytest.raises(cloudflare.APITimeoutError):
        run(cloudflare_client, **{**LONG, "stream": False}, timeout=0.1)
