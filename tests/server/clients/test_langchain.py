"""LangChain's `ChatOpenAI` and `OpenAI` call the server."""

import json

import openai
import pytest

pytest.importorskip("langchain_openai")  # the extra `tools`

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

from llama3 import Llama
from tests.server.clients.conftest import (
    MODEL,
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

ASK = "What is RoPE?"
WEATHER_MESSAGE = HumanMessage(WEATHER[0]["content"])


@pytest.fixture(scope="module")
def chat(address: str) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=f"{address}/v1", api_key=TOKEN, max_retries=0, temperature=0)


@pytest.fixture(scope="module")
def llm(address: str) -> OpenAI:
    return OpenAI(model=MODEL, base_url=f"{address}/v1", api_key=TOKEN, max_retries=0, temperature=0, max_tokens=9)


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(chat: ChatOpenAI, answer: str):
    whole = chat.invoke(ASK)
    assert whole.text == answer and whole.usage_metadata["output_tokens"] > 5
    pieces = list(chat.stream(ASK, stream_usage=True))
    assert "".join(piece.text for piece in pieces) == answer and len(pieces) > 5
    assert sum(pieces[1:], pieces[0]).usage_metadata == whole.usage_metadata


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_follows_the_schema(chat: ChatOpenAI, method: str):
    tool_choice = {"tool_choice": "required"} if method == "function_calling" else {}
    assert (
        chat.with_structured_output(SCHEMA, method=method, **tool_choice).invoke(ASK).keys()
        == SCHEMA["properties"].keys()
    )


def test_json_mode_gives_an_object(chat: ChatOpenAI):
    assert isinstance(json.loads(chat.bind(response_format={"type": "json_object"}).invoke(ASK).text), dict)


def test_a_tool_is_called_and_its_result_sent_back(chat: ChatOpenAI, prompt_after_a_call: int):
    with_tool = chat.bind_tools([TOOL])
    whole = with_tool.invoke([WEATHER_MESSAGE])
    first, *pieces = with_tool.stream([WEATHER_MESSAGE])
    for message in (whole, sum(pieces, first)):
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    history = [WEATHER_MESSAGE, whole, ToolMessage(RESULT, tool_call_id=whole.tool_calls[0]["id"])]
    assert with_tool.invoke(history).usage_metadata["input_tokens"] == prompt_after_a_call


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"temperature": 9}, openai.BadRequestError, TOO_HOT),
        ({"max_tokens": 100_000}, openai.APIStatusError, TOO_LONG),
        ({"model": "gpt-4"}, openai.BadRequestError, "gpt-4"),
    ],
)
def test_an_error_has_its_class_and_says_what_is_wrong(chat: ChatOpenAI, llm: OpenAI, wrong, error, text):
    for model in (chat, llm):
        with pytest.raises(error) as caught:
            model.invoke(ASK, **wrong)
        assert text in str(caught.value)


def test_a_chat_that_is_left_ends_its_request(chat: ChatOpenAI, address: str):
    """The class `OpenAI` keeps its connection open instead."""
    with the_rest_is_not_generated(address):
        stream = chat.stream(LONG["prompt"], **{name: LONG[name] for name in ("max_tokens", "temperature", "seed")})
        next(stream)
        stream.close()


def test_raw_texts_are_continued_one_streamed_and_several_in_one_request(llm: OpenAI):
    prompts = ["The KV cache", "RoPE"]
    expected = [Llama.load().generate(prompt, temperature=0, max_tokens=9).text for prompt in prompts]
    assert llm.invoke(prompts[0]) == "".join(llm.stream(prompts[0])) == expected[0]
    found = llm.generate(prompts)
    assert [one.text for (one,) in found.generations] == expected
    assert found.llm_output["token_usage"]["completion_tokens"] == 18
