"""The AI SDK: with Cloudflare's provider by REST, by a Worker's binding and through an AI Gateway; with OpenAI's.

`node/ai_sdk.mjs` asks, and these tests judge what it got.
"""

import json
from typing import Any

import pytest

from tests.server.clients.conftest import (
    RESULT,
    SCHEMA,
    TOKEN,
    TOO_HOT,
    TOO_LONG,
    the_rest_is_not_generated,
    worker_project,
)
from tests.server.node import PACKAGES, copy_project, needs_node, run_node, wrangler_dev

pytestmark = needs_node


@pytest.fixture(scope="module")
def in_node(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results by the provider's name."""
    folder = copy_project(PACKAGES.parent, tmp_path_factory.mktemp("node") / "clients")
    found = {}
    for provider in ("REST", "OpenAI chat", "OpenAI responses"):
        with the_rest_is_not_generated(address):
            ran = run_node(folder, "node", "ai_sdk_node.mjs", address, TOKEN, provider)
        assert ran.returncode == 0, ran.stderr
        found[provider] = json.loads(ran.stdout)
    return found


@pytest.fixture(scope="module")
def worker(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results by the binding, at the path "/", and through a gateway, at "/gateway"."""
    folder = worker_project(address, tmp_path_factory.mktemp("node") / "worker", "ai_sdk_worker.mjs")
    with wrangler_dev(folder, LLAMA3_TOKEN=TOKEN) as client:
        found = {}
        for path in ("/", "/gateway"):
            with the_rest_is_not_generated(address):
                found[path] = client.get(path).json()
    return found


@pytest.fixture(params=["REST", "OpenAI chat", "OpenAI responses", "/", "/gateway"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue("worker" if "/" in request.param else "in_node")[request.param]


def result(found: dict[str, Any], check: str) -> Any:
    assert "result" in found[check], found[check]
    return found[check]["result"]


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(found: dict[str, Any], answer: str):
    plain, stream = result(found, "plain"), result(found, "stream")
    assert plain["text"] == "".join(stream["pieces"]) == answer and len(stream["pieces"]) > 5
    assert plain["finishReason"] == stream["finishReason"] == "stop"
    for usage in (plain["usage"], stream["usage"]):
        assert usage["inputTokens"] > 5 and usage["outputTokens"] > 5
        assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"]


def test_json_follows_the_schema_and_is_any_object_without_one(found: dict[str, Any]):
    assert result(found, "json").keys() == SCHEMA["properties"].keys()
    assert isinstance(json.loads(result(found, "json_without_schema")), dict)


@pytest.mark.parametrize("check", ["call", "streamed_call"])
def test_a_tool_is_called(found: dict[str, Any], check: str):
    (call,) = result(found, check)["toolCalls"]
    assert (call["toolName"], call["input"]) == ("get_weather", {"city": "Paris"})


def test_the_tool_runs_and_call_and_result_are_in_the_next_prompt(found: dict[str, Any], prompt_after_a_call: int):
    round_trip = result(found, "round_trip")
    assert round_trip["results"] == [RESULT] and round_trip["prompts"][1] == prompt_after_a_call


@pytest.mark.parametrize(("check", "text"), [("bad_input", TOO_HOT), ("too_long", TOO_LONG)])
def test_an_error_has_its_class_and_says_what_is_wrong(found: dict[str, Any], check: str, text: str):
    thrown = result(found, check)
    assert thrown["classes"][0] == "APICallError" and text in thrown["message"]


def test_a_client_that_leaves_ends_its_request(found: dict[str, Any]):
    """The fixtures count what the server generated for it."""
    assert "aborted" in result(found, "abort")["message"]
