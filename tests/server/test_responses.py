"""JSON responses: each is one line for every reader, and an error has the form that the client of its route reads."""

import asyncio
import json
import sys

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.errors import ContractError
from llama3.json_text import encode_json
from llama3.model_names import ALIASES, MODELS, own_name
from llama3.openai_api.output import openai_error
from llama3.server.app import make_app
from llama3.server.service import Service
from llama3.server.streaming import HEADERS
from tests.server.asgi import RUN, Reply, call
from tests.server.served import ASK, post

ACCOUNT = "/client/v4/accounts/me/ai"
OPENAI_BASES = ("/v1", ACCOUNT + "/v1")
ASKS = {
    RUN: {"messages": ASK, "max_tokens": 2},
    "/v1/chat/completions": {"messages": ASK, "max_tokens": 2},
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
}


def test_no_character_ends_the_line():
    """Readers of event streams split lines as `str.splitlines` does."""
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    encoded = encode_json({"text": text, text[0x2028]: 1}).decode()
    assert len(encoded.splitlines()) == 1
    surrogates = {code: "?" for code in range(0xD800, 0xE000)}
    assert json.loads(encoded)["text"] == text.translate(surrogates)


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_with_such_characters_are_not_cut_in_two(demo: Llama, monkeypatch, path: str, stream: bool):
    monkeypatch.setattr("llama3.text.TextStream.push", lambda self, token: "a\u2028b\u2029c\u0085d")
    (reply,) = post(demo, path, {**ASKS[path], "stream": stream})
    lines = [line for line in reply.body.decode().splitlines() if line]
    assert reply.status == 200 and all(line.startswith(("data: ", "event: ")) for line in lines) == stream
    assert "\\u2028" in reply.body.decode() and (stream or len(lines) == 1)


def refusals(app, path: str) -> list[Reply]:
    """One reply for each part of the server that refuses requests: the routes, the router and the authentication."""

    async def run() -> list[Reply]:
        right = {"authorization": "Bearer secret"}
        return [
            await call(app, path, b'{"temperature": "hot"}', **right),
            await call(app, path, b"{", **right),
            await call(app, path, b"", "DELETE", **right),
            await call(app, path, b"{}"),
            await call(app, path, b"{}", host="evil.example", **right),
            await call(app, path, b"{}", origin="https://evil.example", **right),
        ]

    return asyncio.run(run())


@pytest.mark.parametrize("base", OPENAI_BASES)
@pytest.mark.parametrize("name", ["/chat/completions", "/completions", "/responses", "/models/no/such", "/nowhere", ""])
@pytest.mark.parametrize("loaded", [True, False])
def test_every_refusal_on_openais_routes_has_an_error_object(demo: Llama, base: str, name: str, loaded: bool):
    service = Service(lambda: demo, 4, 8)
    service.llama = demo if loaded else None
    for reply in refusals(make_app(service, "secret"), base + name):
        assert reply.status >= 400
        found = reply.json()
        assert found["success"] is False and found["error"].keys() == {"message", "type", "code", "param"}
        assert found["errors"] == [{"message": found["error"]["message"], "code": found["error"]["code"]}]
        assert isinstance(found["error"]["type"], str) and found["error"]["message"]


@pytest.mark.parametrize("path", [RUN, "/run", "/tokenize", "/nowhere", ACCOUNT + "/models/schema", ACCOUNT, "/v1x"])
def test_errors_on_other_routes_have_cloudflares_form_alone(demo: Llama, path: str):
    service = Service(lambda: demo, 4, 8)
    service.llama = demo
    replies = refusals(make_app(service, "secret"), path)
    assert all("error" not in reply.json() for reply in replies)


def test_an_error_that_ends_a_stream_has_the_same_object(demo: Llama, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(demo.model, "step", fail)
    for path in ("/v1/chat/completions", "/v1/completions"):
        (reply,) = post(demo, path, {"messages": ASK, "prompt": "a", "stream": True})
        error = reply.events()[-1]["error"]
        assert error == {"message": "AiError: no room", "type": "server_error", "code": 3043, "param": None}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("'/temperature' must be <= 5", "temperature"),
        ("Type mismatch of '/messages/0/content/1/text', 'null' not in 'string'", "messages[0].content[1].text"),
        ("Type mismatch of '/', 'array' not in 'object'", None),
        ("Authentication error", None),
    ],
)
def test_the_parameter_is_the_one_that_the_message_names(message: str, param: str | None):
    assert openai_error(message, 5006, 400)["param"] == param


def test_models_are_found_by_every_name_that_requests_may_use(demo: Llama, tmp_path):
    own = own_name(demo.checkpoint.path)
    assert own == "demo"
    assert own_name(tmp_path / "models--meta-llama--Llama-3.2-1B" / "snapshots" / "0") == "meta-llama/Llama-3.2-1B"
    service = Service(lambda: demo, 4, 8)
    service.llama = demo
    app = make_app(service)

    async def get(path: str) -> Reply:
        return await call(app, path, b"", "GET")

    for name in (*MODELS, *ALIASES, own):
        for base in OPENAI_BASES:
            assert asyncio.run(get(f"{base}/models/{name}")).json()["id"] == name
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
            (reply,) = post(demo, path, {**ASKS[path], "model": name})
            assert reply.status == 200 and reply.json()["model"] == name
    unknown = asyncio.run(get("/v1/models/gpt-4"))
    assert unknown.status == 404 and unknown.json()["error"]["code"] == 5007
    (reply,) = post(demo, "/v1/completions", {"model": "gpt-4", "prompt": "a"})
    assert reply.status == 400 and reply.json()["error"]["code"] == 5007


def test_event_streams_are_not_collected_by_a_proxy(demo: Llama):
    assert HEADERS["x-accel-buffering"] == "no"
    for path in ASKS:
        (reply,) = post(demo, path, {**ASKS[path], "stream": True})
        assert reply.headers.items() >= HEADERS.items()


def test_a_contract_error_has_a_name_for_openais_clients():
    error = ContractError("AiError: Capacity temporarily exceeded, please try again.", 3040, 429)
    assert openai_error(str(error), error.code, error.status)["type"] == "rate_limit_error"
