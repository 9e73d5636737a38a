"""OpenAI's package for node calls the server; `node/openai.mjs` asks, and these tests judge what it got."""

import json
from typing import Any

import pytest

from llama3 import Llama
from llama3.model_names import MODELS
from tests.server.clients.conftest import MODEL, SCHEMA, TOKEN, TOO_HOT, TOO_LONG, the_rest_is_not_generated
from tests.server.node import PACKAGES, copy_project, needs_node, run_node

pytestmark = needs_node


@pytest.fixture(scope="module")
def found(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = copy_project(PACKAGES.parent, tmp_path_factory.mktemp("node") / "clients")
    with the_rest_is_not_generated(address):  # of the checks that abort
        ran = run_node(folder, "node", "openai.mjs", address, TOKEN)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def result(found: dict[str, Any], check: str) -> Any:
    assert "result" in found[check], found[check]
    return found[check]["result"]


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(found: dict[str, Any], answer: str):
    (choice,) = result(found, "plain")["choices"]
    assert choice["message"]["content"] == answer and choice["finish_reason"] == "stop"
    chunks = result(found, "stream")
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == answer
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == result(found, "plain")["usage"]


def test_json_follows_the_schema_and_is_parsed(found: dict[str, Any]):
    assert result(found, "json")["choices"][0]["message"]["parsed"].keys() == SCHEMA["properties"].keys()


@pytest.mark.parametrize("check", ["call", "streamed_call"])
def test_a_tool_is_called(found: dict[str, Any], check: str):
    (choice,) = result(found, check)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_run_tools_calls_the_function_and_sends_call_and_result_back(found: dict[str, Any], prompt_after_a_call: int):
    round_trip = result(found, "round_trip")
    assert json.loads(round_trip["called"][0]) == {"city": "Paris"}
    assert round_trip["prompts"][1] == prompt_after_a_call


def test_a_raw_text_in_a_list_is_continued(found: dict[str, Any]):
    (choice,) = result(found, "raw_text")["choices"]
    assert choice["text"] == Llama.load().generate("The KV cache", temperature=0, max_tokens=9).text


def test_models_are_listed_and_found_by_name(found: dict[str, Any]):
    assert result(found, "models")[: len(MODELS)] == list(MODELS) and result(found, "one_model") == MODEL


@pytest.mark.parametrize(
    ("check", "error", "status", "text"),
    [
        ("bad_input", "BadRequestError", 400, TOO_HOT),
        ("bad_model", "BadRequestError", 400, "gpt-4"),
        ("bad_token", "AuthenticationError", 401, "Authentication error"),
        ("bad_route", "NotFoundError", 404, "No route for that URI"),
        ("too_long", "APIError", 413, TOO_LONG),
    ],
)
def test_an_error_has_its_class_and_says_what_is_wrong(found: dict[str, Any], check, error, status, text):
    thrown = result(found, check)
    assert (thrown["classes"][0], thrown["status"]) == (error, status)
    assert text in thrown["message"], thrown["message"]


def test_a_client_that_leaves_ends_its_request(found: dict[str, Any]):
    """The fixture counts what the server generated for it."""
    assert result(found, "abort")["classes"][0] == "APIUserAbortError"
