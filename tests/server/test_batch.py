"""A batch answers what the server answers: the same body for the same request, right or wrong, on every route."""

import json
from typing import Any

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.batch_request import Answerer
from tests.batch_answers import without_ids
from tests.server.asgi import RUN
from tests.server.served import ASK, post

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
FLAT_TOOL = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
BODIES: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"messages": ASK, "seed": 1, "max_tokens": 9, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": ASK, "seed": 2, "tools": [TOOL], "tool_choice": "required"}),
    ("/v1/chat/completions", {"messages": ASK, "seed": 3, "response_format": FORMAT}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 10**6}),
    ("/v1/completions", {"prompt": ["The", "A"], "seed": 4, "max_tokens": 5, "logprobs": 1, "echo": True}),
    ("/v1/completions", {"prompt": [1, 2, 3], "seed": 5, "max_tokens": 5, "stop": ["e"]}),
    ("/v1/completions", {"prompt": ["The", 7]}),
    ("/v1/responses", {"input": "What is RoPE?", "seed": 6, "max_output_tokens": 9}),
    ("/v1/responses", {"input": "Hi", "seed": 7, "tools": [FLAT_TOOL], "tool_choice": "required"}),
    ("/v1/responses", {"input": "Hi", "store": True}),
    (RUN, {"messages": ASK, "seed": 8, "max_tokens": 9}),
    (RUN, {"prompt": "Hi", "seed": 9, "tools": [TOOL], "max_tokens": 1000}),
    (RUN, {"prompt": "Hi", "seed": 10, "response_format": FORMAT}),
    (RUN, {"prompt": "", "seed": 11}),
    (RUN, {"prompt": "Hi", "lora": "none"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_the_body_is_the_server_s(demo: Llama, path: str, body: Any):
    (reply,) = post(demo, path, body)
    if path == RUN:
        answer = Answerer(demo).answer(body)
        assert answer.pop("custom_id") is None and answer["success"] == (reply.status == 200)
        found = answer
    else:
        response = Answerer(demo).answer({"url": path, "body": body})["response"]
        assert response["status_code"] == reply.status
        found = response["body"]
    assert list(found) == list(reply.json())
    (ours, our_floats), (theirs, their_floats) = without_floats(json.dumps(found)), without_floats(reply.body)
    assert without_ids(ours) == without_ids(theirs)
    assert our_floats == pytest.approx(their_floats, rel=1e-4, abs=1e-6)  # rounding: the prompt is cached by now


def without_floats(text: str | bytes) -> tuple[str, list[float]]:
    """JSON with 0 in place of each float, and the floats."""
    floats: list[float] = []
    value = json.loads(text, parse_float=lambda number: floats.append(float(number)) or 0)
    return json.dumps(value), floats
