"""The types of the package `openai` read the bodies of a batch, and their errors."""

from typing import Any

import pytest
from openai.types import Completion, ErrorObject
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from llama3 import Llama
from tests.server.clients.conftest import QUESTION, SCHEMA, TOOL, WEATHER

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
JSON = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TEXT_JSON = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}
FLAT_TOOL = {"type": "function", "strict": True, **TOOL["function"]}
REQUESTS: list[tuple[str, Any]] = [
    (CHAT, {"messages": QUESTION, "max_tokens": 9}),
    (CHAT, {"messages": QUESTION, "max_tokens": 9, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": WEATHER, "tools": [TOOL], "tool_choice": "required"}),
    (CHAT, {"messages": QUESTION, "response_format": JSON, "temperature": 0}),
    (COMPLETIONS, {"prompt": "The KV cache", "max_tokens": 9}),
    # Not with "echo", which gives the prompt's first token no log-probability: OpenAI's types do not allow for that.
    (COMPLETIONS, {"prompt": ["The", "A"], "max_tokens": 9, "logprobs": 2}),
    (RESPONSES, {"input": "What is RoPE?", "max_output_tokens": 9}),
    (RESPONSES, {"input": "What is the weather in Paris?", "tools": [FLAT_TOOL], "tool_choice": "required"}),
    (RESPONSES, {"input": "What is RoPE?", "text": TEXT_JSON, "instructions": "Be brief.", "metadata": {"a": "b"}}),
]
TYPES = {CHAT: ChatCompletion, COMPLETIONS: Completion, RESPONSES: Response}


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.load(slots=4)


def test_each_body_is_of_openai_s_type(llama: Llama):
    requests = [{"custom_id": str(k), "url": url, "body": body} for k, (url, body) in enumerate(REQUESTS)]
    for (url, _), answer in zip(REQUESTS, llama.batch(requests)):
        assert answer["response"]["status_code"] == 200, answer
        TYPES[url].model_validate(answer["response"]["body"])


@pytest.mark.parametrize("url", TYPES)
def test_each_error_is_of_openai_s_type(llama: Llama, url: str):
    (answer,) = llama.batch([{"url": url, "body": {"n": 2}}])
    error = answer["response"]["body"]["error"]
    found = ErrorObject.model_validate({**error, "code": str(error["code"])})
    assert found.param == "n" and found.type == "invalid_request_error"
