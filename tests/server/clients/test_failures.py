"""Failures as the clients see them: a full queue, answers that end badly, a server or a client that is killed."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import cloudflare
import jsonschema_rs
import openai
import pytest

from llama3 import Llama
from llama3.model_names import MODELS
from tests.server.running import LONG, RunningServer, post_request

MODEL = MODELS[0]
ASK = [{"role": "user", "content": "What is RoPE?"}]
GO_ON = [{"role": "user", "content": LONG["prompt"]}]
SCHEMA = {
    "type": "object",
    "properties": {
        "about": {"enum": ["RoPE", "the sampler"]},
        "parts": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["about", "parts"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": SCHEMA}
TOOL = {"name": "look_up", "description": "Looks a word up", "parameters": SCHEMA}


def wait_for(running: RunningServer, requests: float) -> None:
    deadline = time.monotonic() + 60
    while running.in_flight() != requests:
        assert time.monotonic() < deadline, f"{running.in_flight()} requests in flight; expected {requests}"
        time.sleep(0.05)


def test_the_long_request_does_not_end_by_itself():
    """The tests of clients that leave rest on this."""
    assert Llama.load().run({**LONG, "stream": False})["usage"]["completion_tokens"] == LONG["max_tokens"]


@pytest.fixture(scope="module")
def small() -> Iterator[RunningServer]:
    """A server with one slot, a queue of one, and no token."""
    with RunningServer("--queue", "1") as running:
        yield running


@pytest.fixture
def full_server(small: RunningServer) -> Iterator[RunningServer]:
    with small.connect() as first, small.connect() as second:
        for n, connection in enumerate((first, second), 1):
            connection.sendall(post_request(LONG))
            wait_for(small, n)
        yield small
    wait_for(small, 0)  # both have disconnected without reading anything


def test_a_full_queue_is_3040_with_retry_after_in_the_cloudflare_package(full_server: RunningServer):
    client = cloudflare.Cloudflare(
        api_token="any", base_url=f"http://127.0.0.1:{full_server.port}/client/v4", max_retries=0
    )
    with pytest.raises(cloudflare.RateLimitError) as caught:
        client.ai.run(MODEL, account_id="me", prompt="a")
    assert caught.value.status_code == 429 and [error.code for error in caught.value.errors] == [3040]
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_a_full_queue_is_3040_with_retry_after_in_the_openai_package(full_server: RunningServer):
    client = openai.OpenAI(api_key="any", base_url=f"http://127.0.0.1:{full_server.port}/v1", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASK)
    assert caught.value.response.json()["errors"][0]["code"] == 3040
    assert int(caught.value.response.headers["retry-after"]) > 0


CLIENT = """
import sys, openai
client = openai.OpenAI(api_key="any", base_url=sys.argv[1], max_retries=0)
messages = [{"role": "user", "content": "Go on"}]
for chunk in client.chat.completions.create(
    model=sys.argv[2], messages=messages, max_tokens=1500, temperature=5, seed=14, stream=True
):
    print(chunk.choices[0].delta.content, flush=True)
"""


def test_a_client_killed_with_kill_9_leaves_no_request_in_flight(small: RunningServer):
    url = f"http://127.0.0.1:{small.port}/v1"
    client = subprocess.Popen([sys.executable, "-c", CLIENT, url, MODEL], stdout=subprocess.PIPE)
    assert client.stdout and client.stdout.readline() and client.stdout.readline()
    assert small.in_flight() == 1
    client.kill()
    client.wait()
    wait_for(small, 0)


def start_long_stream(running: RunningServer) -> tuple[openai.OpenAI, openai.Stream]:
    """A client and its long stream, from which one chunk has been read."""
    client = openai.OpenAI(api_key="any", base_url=f"http://127.0.0.1:{running.port}/v1", max_retries=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=GO_ON, max_tokens=1500, temperature=5, seed=14, stream=True
    )
    next(stream)
    return client, stream


def test_a_server_killed_with_kill_9_is_an_error_in_the_openai_package():
    with RunningServer() as running:
        client, stream = start_long_stream(running)
    with pytest.raises(Exception, match=r"closed|incomplete|reset|peer|Connection"):
        list(stream)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_json_that_is_cut_short_is_5024_and_in_a_stream_its_last_event(cloudflare_client):
    inputs = {"messages": ASK, "response_format": FORM, "max_tokens": 3}
    with pytest.raises(cloudflare.BadRequestError) as caught:
        cloudflare_client.ai.run(MODEL, account_id="me", **inputs)
    assert [error.code for error in caught.value.errors] == [5024]
    with cloudflare_client.ai.with_streaming_response.run(MODEL, account_id="me", stream=True, **inputs) as reply:
        *_, last, done = [line for line in reply.iter_lines() if line]
    assert done == "data: [DONE]"
    assert [error["code"] for error in json.loads(last.removeprefix("data: "))["errors"]] == [5024]


def test_a_schema_that_cannot_be_enforced_is_refused(cloudflare_client):
    form = {"type": "json_schema", "json_schema": {"$ref": "https://example.com/schema"}}
    with pytest.raises(cloudflare.BadRequestError) as caught:
        cloudflare_client.ai.run(MODEL, account_id="me", messages=ASK, response_format=form)
    assert [error.code for error in caught.value.errors] == [5006]


@pytest.mark.parametrize("tool", [TOOL, {"type": "function", "function": TOOL}], ids=["flat", "OpenAI's envelope"])
def test_with_tools_the_answer_is_text_or_calls_that_fit(cloudflare_client, tool):
    for seed in (1, 2, 3):  # the seed decides whether the demo calls the tool
        inputs = {"messages": ASK, "tools": [tool], "max_tokens": 60, "seed": seed}
        answer = cloudflare_client.ai.run(MODEL, account_id="me", **inputs)
        assert bool(answer["response"]) != bool(answer["tool_calls"])
        for call in answer["tool_calls"]:
            assert call["name"] == "look_up"
            jsonschema_rs.validate(SCHEMA, call["arguments"])


def test_the_same_seed_gives_the_same_answer_and_another_seed_another_one(cloudflare_client):
    def ask(seed: int) -> dict:
        inputs = {"messages": ASK, "max_tokens": 20, "temperature": 2, "seed": seed}
        return cloudflare_client.ai.run(MODEL, account_id="me", **inputs)

    assert ask(9_999_999_999) == ask(9_999_999_999) != ask(2)


def test_a_too_large_body_is_3006_in_the_openai_package(openai_client):
    with pytest.raises(openai.APIStatusError) as caught:
        messages = [{"role": "user", "content": "x" * 1_100_000}]
        openai_client.chat.completions.create(model=MODEL, messages=messages)
    assert (caught.value.status_code, caught.value.response.json()["errors"][0]["code"]) == (413, 3006)


def test_a_stopping_server_is_an_error_in_the_openai_package():
    with RunningServer() as running:
        _, stream = start_long_stream(running)
        running.process.terminate()
        with pytest.raises(openai.APIError):
            list(stream)
        running.process.wait(timeout=60)
