"""`env.AI.run` in a Worker under `wrangler dev`, directly and with a gateway; `node/binding_worker.mjs` asks."""

import json
import re
from typing import Any

import pytest

from llama3 import Llama
from tests.server.clients.conftest import (
    QUESTION,
    SCHEMA,
    TOKEN,
    TOO_HOT,
    TOO_LONG,
    the_rest_is_not_generated,
    worker_project,
)
from tests.server.node import needs_node, wrangler_dev

pytestmark = needs_node


@pytest.fixture(scope="module")
def both(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results by the path of the Worker."""
    project = worker_project(address, tmp_path_factory.mktemp("node") / "worker", "binding_worker.mjs")
    found = {}
    with wrangler_dev(project, LLAMA3_TOKEN=TOKEN) as client:
        for path in ("/", "/gateway"):
            with the_rest_is_not_generated(address):  # of the checks that abort
                found[path] = client.get(path).json()
    return found


@pytest.fixture(params=["/", "/gateway"])
def found(both: dict[str, dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    return both[request.param]


def result(found: dict[str, Any], check: str) -> Any:
    assert "result" in found[check], found[check]
    return found[check]["result"]


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(found: dict[str, Any]):
    expected = Llama.load().run({"messages": QUESTION, "temperature": 0})
    assert result(found, "plain") == expected
    *chunks, done = re.findall(r"^data: (.*)$", result(found, "stream"), re.M)
    assert done == "[DONE]"
    assert "".join(json.loads(chunk)["response"] for chunk in chunks) == expected["response"]
    assert json.loads(chunks[-1])["usage"] == expected["usage"]


def test_json_follows_the_schema(found: dict[str, Any]):
    assert json.loads(result(found, "json")["response"]).keys() == SCHEMA["properties"].keys()


def test_a_tool_is_called_and_its_result_sent_back(found: dict[str, Any], prompt_after_a_call: int):
    assert result(found, "call")["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    assert result(found, "round_trip")["usage"]["prompt_tokens"] == prompt_after_a_call


@pytest.mark.parametrize(
    ("check", "text"), [("bad_input", f"5006: Error: {TOO_HOT}"), ("too_long", TOO_LONG), ("bad_model", "5007")]
)
def test_an_error_has_its_class_and_says_what_is_wrong(found: dict[str, Any], check: str, text: str):
    thrown = result(found, check)
    assert "Error" in thrown["classes"] and text in thrown["message"]


def test_a_client_that_leaves_ends_its_request(found: dict[str, Any]):
    """The fixture counts what the server generated for it."""
    assert "aborted" in result(found, "abort")["message"]
