"""The page /inspect and its data, without a network: what it needs, its bounds, and one at a time."""

import asyncio
import json
import threading

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.server.app import make_app
from llama3.server.service import Service
from tests.server.asgi import call
from tests.server.served import post


@pytest.fixture(scope="module")
def demo() -> Llama:
    return Llama.load()


def get(path: str, token: str | None = None):
    app = make_app(Service(lambda: None, 1, 1), token)  # type: ignore[arg-type, return-value]
    return asyncio.run(call(app, path, b"", method="GET"))


def test_the_page_needs_no_token_and_holds_the_views():
    reply = get("/inspect", token="secret")
    assert reply.status == 200 and b'id="heads"' in reply.body and b'id="ask"' in reply.body
    for name in ("base.css", "inspect.css", "inspect.js", "ask.js"):
        assert f"static/{name}".encode() in reply.body and get(f"/static/{name}", token="secret").status == 200


def test_the_data_need_the_token(demo: Llama):
    (reply,) = post(demo, "/inspect/run", {"prompt": "What is RoPE?"}, token="secret")
    assert reply.status == 401


def test_the_data_are_those_of_the_model_that_runs(demo: Llama):
    body = {"prompt": "What is RoPE?", "temperature": 0, "max_tokens": 3, "without": ["0.1"]}
    (reply,) = post(demo, "/inspect/run", body)
    found = reply.json()
    assert reply.status == 200 and found["answer"] == "RoPE," and found["first"] == [0, 1]
    assert found["ablations"][0][:2] == ["0.1", "0"] and len(found["ablations"]) == 20


@pytest.mark.parametrize(
    "body, message",
    [
        ({"prompt": "x", "without": ["9.0"]}, "there is no layer 9; this model has layers 0 to 3"),
        ({"prompt": "x", "without": "0.1"}, "'/without'"),
        ({"prompt": "x", "without": [1]}, "'/without/0'"),
        ({"prompt": "x", "max_tokens": 201}, "a page shows at most 200"),
        ({"prompt": "x " * 300}, "a page shows at most 256"),
        ({"prompt": "x", "temperature": "hot"}, "'/temperature'"),
        ({}, "required properties"),
    ],
)
def test_what_it_cannot_show_is_refused(demo: Llama, body: dict, message: str):
    (reply,) = post(demo, "/inspect/run", body)
    assert reply.status == 400 and message in reply.json()["errors"][0]["message"]


def test_a_second_one_is_told_to_come_back(demo: Llama, monkeypatch: pytest.MonkeyPatch):
    started, go_on = threading.Event(), threading.Event()

    def wait(llama: Llama, body: dict) -> dict:
        started.set()
        assert go_on.wait(30)
        return {}

    monkeypatch.setattr("llama3.server.app.inspect_object", wait)

    async def run():
        service = Service(lambda: demo, 4, 8)
        service.llama = demo
        app, body = make_app(service), json.dumps({"prompt": "x"}).encode()
        first = asyncio.create_task(call(app, "/inspect/run", body))
        while not started.is_set():
            await asyncio.sleep(0.01)
        second = await call(app, "/inspect/run", body)
        go_on.set()
        return await first, second, await call(app, "/inspect/run", body)

    first, second, third = asyncio.run(run())
    assert (first.status, second.status, third.status) == (200, 429, 200)
    assert second.headers["retry-after"] == "1"
