"""LiteLLM calls the server as `openai/`, `text-completion-openai/` and `cloudflare/`."""

import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest

pytest.importorskip("litellm")  # the extra `tools`

import litellm

from llama3 import Llama
from tests.server.clients.conftest import (
    MODEL,
    QUESTION,
    RESULT,
    SCHEMA,
    TOKEN,
    TOO_HOT,
    TOO_LONG,
    TOOL,
    WEATHER,
    the_rest_is_not_generated,
)
from tests.server.running import LONG

ADDRESSES = {"openai": "/v1", "cloudflare": "/client/v4/accounts/me/ai/v1"}
Ask = Callable[..., Any]


@pytest.fixture(params=ADDRESSES)
def ask(request: pytest.FixtureRequest, address: str, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setattr(litellm, "disable_hf_tokenizer_download", True)  # it counts tokens itself, too

    def ask(**more: Any) -> Any:
        base = {"model": f"{request.param}/{MODEL}", "api_base": address + ADDRESSES[request.param], "api_key": TOKEN}
        return litellm.completion(**{**base, "max_retries": 0, "messages": QUESTION, "temperature": 0, **more})

    return ask


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(ask: Ask, answer: str):
    whole = ask()
    assert whole.choices[0].message.content == answer and whole.choices[0].finish_reason == "stop"
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == answer
    (usage,) = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == whole.usage[name] > 5


def test_json_follows_the_schema(ask: Ask):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert json.loads(ask(response_format=form).choices[0].message.content).keys() == SCHEMA["properties"].keys()


def test_a_tool_is_called_and_its_result_sent_back(ask: Ask, prompt_after_a_call: int):
    whole = ask(messages=WEATHER, tools=[TOOL])
    streamed = litellm.stream_chunk_builder(list(ask(messages=WEATHER, tools=[TOOL], stream=True)))
    for reply in (whole, streamed):
        (call,) = reply.choices[0].message.tool_calls
        assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Paris"}
        assert reply.choices[0].finish_reason == "tool_calls"
    history = [*WEATHER, whole.choices[0].message]
    history.append({"role": "tool", "tool_call_id": history[-1].tool_calls[0].id, "content": RESULT})
    assert ask(messages=history, tools=[TOOL]).usage.prompt_tokens == prompt_after_a_call


@pytest.mark.parametrize(("wrong", "text"), [({"temperature": 9}, TOO_HOT), ({"max_tokens": 100_000}, TOO_LONG)])
def test_an_error_says_what_is_wrong(ask: Ask, wrong: dict[str, Any], text: str):
    with pytest.raises(openai.APIError) as caught:  # LiteLLM's classes are OpenAI's
        ask(**wrong)
    assert text in str(caught.value)


def test_a_wrong_token_is_an_authentication_error(ask: Ask):
    with pytest.raises(litellm.AuthenticationError, match="Authentication error"):
        ask(api_key="wrong")


def test_a_stream_that_is_left_ends_its_request(ask: Ask, address: str):
    with the_rest_is_not_generated(address):
        sampling = {name: LONG[name] for name in ("max_tokens", "temperature", "seed")}
        stream = ask(messages=[{"role": "user", "content": LONG["prompt"]}], **sampling, stream=True)
        next(stream)
        stream.completion_stream.close()


def test_a_raw_text_is_continued_whole_and_streamed(address: str):
    """A stream of raw text that is left keeps its connection open, so nothing about it is asserted."""

    def ask(**more: Any) -> Any:
        base = {"model": f"text-completion-openai/{MODEL}", "api_base": f"{address}/v1", "api_key": TOKEN}
        return litellm.text_completion(**{**base, "prompt": "The KV cache", "temperature": 0, "max_tokens": 9, **more})

    expected = Llama.load().generate("The KV cache", temperature=0, max_tokens=9).text
    whole = ask()
    assert whole.choices[0].text == expected and whole.usage.completion_tokens == 9
    assert "".join(choice.text or "" for chunk in ask(stream=True) for choice in chunk.choices) == expected
    with pytest.raises(openai.APIError, match=re.escape(TOO_HOT)):
        ask(temperature=9)
