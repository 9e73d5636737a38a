"""The ingress in front of replicas, without Ray: streams go on after a death, limits, who may ask."""

import asyncio
import contextlib
import json
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest

from llama3 import Llama
from llama3.limits import LIMITS
from tests.ray.in_process import Death, service
from tests.server.asgi import RUN, Reply, call

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
ASK = [{"role": "user", "content": "What is RoPE?"}]
BODIES: dict[str, dict[str, Any]] = {
    RUN: {"messages": ASK, "max_tokens": 20, "temperature": 1.5},
    "/run": {"inputs": {"messages": ASK, "max_tokens": 20, "temperature": 1.5}},
    CHAT: {"messages": ASK, "max_tokens": 20, "temperature": 1.5, "logprobs": True},
    COMPLETIONS: {"prompt": "What is RoPE?", "max_tokens": 20, "temperature": 1.5},
    RESPONSES: {"input": "What is RoPE?", "max_output_tokens": 20, "temperature": 1.5},
}


@pytest.fixture(scope="module")
def demo() -> Llama:
    return Llama.load(slots=4)


def streaming(path: str, **more: Any) -> bytes:
    body = BODIES[path]
    given = {**body.get("inputs", body), "stream": True, **more}
    return json.dumps({"inputs": given} if "inputs" in body else given).encode()


def without_padding(value: Any) -> Any:
    """Events as two runs of one request must have them: without padding, ids and times."""
    if isinstance(value, dict):
        left = ("p", "id", "item_id", "created", "created_at")
        return {name: without_padding(inner) for name, inner in value.items() if name not in left}
    return [without_padding(inner) for inner in value] if isinstance(value, list) else value


def events(reply: Reply) -> list[Any]:
    assert reply.status == 200, reply.body
    parts = [part for part in reply.body.decode().split("\n\n") if part]
    data = [part.partition("data: ")[2] for part in parts]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("at", [1, 3, 9])
def test_a_stream_goes_on_after_its_replica_has_died(demo: Llama, path: str, at: int):
    async def run() -> tuple[Reply, Reply, dict[str, int]]:
        body = streaming(path, seed=7)
        app, _, _ = await service(demo)
        undisturbed = await call(app, path, body)
        app, handle, ingress = await service(demo, dies=lambda nth, part: nth == 0 and part == at)
        disturbed = await call(app, path, body)
        assert sorted(handle.asked) == ["r0", "r1"]
        assert handle.loads == {"r0": 0, "r1": 0}
        return undisturbed, disturbed, ingress.counts

    undisturbed, disturbed, counts = asyncio.run(run())
    assert without_padding(events(disturbed)) == without_padding(events(undisturbed))
    assert counts == {"continued": at > 1, "repeated": at == 1}  # before part 1, there is no answer yet
    ids, again = (set(re.findall(rb"[-_][0-9a-f]{32}\b", reply.body)) for reply in (undisturbed, disturbed))
    assert len(again) == len(ids)  # the second run's are not there


@pytest.mark.parametrize("path", [RUN, CHAT, RESPONSES])
def test_a_stream_without_a_seed_gets_one(demo: Llama, path: str):
    async def run() -> Reply:
        dice = random.Random(3)
        app, _, _ = await service(demo, n=3, dies=lambda nth, part: nth < 2 and part > dice.randint(3, 9))
        return await call(app, path, streaming(path))

    found = events(asyncio.run(run()))
    assert len(found) > 5
    assert not any("errors" in event or event.get("error") for event in found if event != "[DONE]")


@pytest.mark.parametrize("path", [RUN, "/run", CHAT, RESPONSES])
def test_an_answer_that_is_not_a_stream_is_repeated(demo: Llama, path: str):
    async def run(dies: Any) -> tuple[Reply, dict[str, int]]:
        app, _, ingress = await service(demo, dies=dies)
        return await call(app, path, streaming(path, stream=False, seed=7)), ingress.counts

    plain, _ = asyncio.run(run(lambda nth, part: False))
    again, counts = asyncio.run(run(lambda nth, part: nth == 0 and part == 1))
    assert plain.status == again.status == 200 and counts == {"continued": 0, "repeated": 1}
    assert without_padding(plain.json()) == without_padding(again.json())


def test_a_stream_that_no_replica_ends_has_a_last_event(demo: Llama):
    async def run() -> Reply:
        app, _, _ = await service(demo, dies=lambda nth, part: part == 5)
        return await call(app, CHAT, streaming(CHAT))

    *_, last, done = events(asyncio.run(run()))
    assert done == "[DONE]"
    assert "died" in last["error"]["message"]


def test_another_text_is_not_joined_to_the_first(demo: Llama):
    """As on hardware with another rounding: the second replica is given another prompt."""

    async def run() -> Reply:
        app, handle, _ = await service(demo, dies=lambda nth, part: nth == 0 and part == 9)
        remote = handle.remote

        def with_other_prompt(ask: Any) -> Any:
            if handle.asked:
                ask.body = ask.body.replace(b"RoPE", b"attention")
            return remote(ask)

        handle.remote = with_other_prompt  # type: ignore[method-assign]
        return await call(app, RUN, streaming(RUN, seed=7))

    *_, last, _ = events(asyncio.run(run()))
    assert "another text" in last["errors"][0]["message"]


def test_stopping_ends_streams_with_a_last_event_and_refuses_new_requests(demo: Llama):
    async def run() -> tuple[Reply, Reply]:
        app, _, ingress = await service(demo)
        long = json.dumps({"prompt": "Go on", "max_tokens": 1500, "temperature": 5, "seed": 14, "stream": True})
        running = asyncio.ensure_future(call(app, RUN, long.encode()))
        while not ingress.answers or next(iter(ingress.answers)).sent is None:
            await asyncio.sleep(0.01)
        assert await ingress.stop() == 1
        first = await running
        return first, await call(app, RUN, streaming(RUN))

    first, second = asyncio.run(run())
    *_, last, done = events(first)
    assert "stopping" in last["errors"][0]["message"] and done == "[DONE]"
    assert second.status == 503 and second.json()["errors"][0]["code"] == 7009


def test_a_client_that_leaves_frees_its_slot(demo: Llama):
    async def run() -> list[int]:
        app, handle, _ = await service(demo)
        body = json.dumps({"prompt": "Go on", "max_tokens": 1500, "temperature": 5, "seed": 14, "stream": True})
        with contextlib.suppress(ValueError):  # `call` reads a response, and there may be none
            await call(app, RUN, body.encode(), disconnects=True)
        for _ in range(200):
            if not any(replica.service.in_flight for replica in handle.replicas.values()):
                break
            await asyncio.sleep(0.01)
        return [replica.service.in_flight for replica in handle.replicas.values()]

    assert asyncio.run(run()) == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_is_unhealthy_after_a_failure_until_it_generates_again(
    demo: Llama, stream: bool, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> Any:
        raise RuntimeError("the GPU is lost")

    async def run() -> None:
        app, handle, _ = await service(demo, n=1)
        (replica,) = handle.replicas.values()
        await replica.check_health()
        with monkeypatch.context() as broken:
            broken.setattr(demo._engine.model, "step", fail)
            reply = await call(app, RUN, streaming(RUN, stream=stream))
            assert b"3043" in reply.body
            with pytest.raises(Exception, match="the GPU is lost"):
                await replica.check_health()
        await replica.check_health()
        assert not replica.has_failed

    asyncio.run(run())


def test_metrics_leave_out_a_replica_that_has_died(demo: Llama):
    async def run() -> Reply:
        app, handle, _ = await service(demo)

        async def results_async(timeout_s: float, return_exceptions: bool = False) -> list[Any]:
            if not return_exceptions:
                raise Death
            return [await handle.replicas["r0"].metrics(), Death()]

        handle.broadcast = lambda method: SimpleNamespace(results_async=results_async)  # type: ignore[attr-defined]
        return await call(app, "/metrics", b"", method="GET")

    reply = asyncio.run(run())
    assert reply.status == 200 and b'llama3_requests_in_flight{replica="r0"} 0.0' in reply.body


def test_metrics_are_refused_while_a_replica_hangs(demo: Llama):
    async def run() -> Reply:
        app, handle, _ = await service(demo)

        async def results_async(timeout_s: float, return_exceptions: bool) -> list[Any]:
            raise TimeoutError

        handle.broadcast = lambda method: SimpleNamespace(results_async=results_async)  # type: ignore[attr-defined]
        return await call(app, "/metrics", b"", method="GET")

    reply = asyncio.run(run())
    assert reply.status == 503 and b"a replica has not given its metrics in 5 seconds" in reply.body


def test_full_replicas_answer_429(demo: Llama):
    async def run() -> list[int]:
        app, _, _ = await service(demo, slots=1, queue=1)
        body = json.dumps({"prompt": "Go on", "max_tokens": 30, "temperature": 5, "seed": 14}).encode()
        return sorted(reply.status for reply in await asyncio.gather(*(call(app, RUN, body) for _ in range(7))))

    assert asyncio.run(run()) == [200] * 4 + [429] * 3


def test_limits_hold_in_front_of_the_replicas(demo: Llama, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LIMITS, "body_bytes", 1000)
    monkeypatch.setattr(LIMITS, "header_bytes", 500)

    async def run() -> list[Reply]:
        app, handle, _ = await service(demo)
        long = json.dumps({"prompt": "x" * 2000}).encode()
        replies = [await call(app, path, long) for path in (RUN, CHAT, "/run")]
        replies.append(await call(app, RUN, b"{}", x="y" * 600))
        assert not handle.asked
        return replies

    rest, openai, binding, headers = asyncio.run(run())
    assert [reply.status for reply in (rest, openai, binding, headers)] == [413, 413, 413, 431]
    assert rest.json()["errors"][0]["code"] == 3006
    assert openai.json()["error"]["code"] == 3006
    assert binding.json()["internalCode"] == 3006


def test_a_request_that_does_not_arrive_gets_408(demo: Llama, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LIMITS, "seconds", 0.05)

    async def run() -> list[dict[str, Any]]:
        app, _, _ = await service(demo)
        sent: list[dict[str, Any]] = []
        first = [{"type": "http.request", "body": b'{"pro', "more_body": True}]

        async def receive() -> dict[str, Any]:
            return first.pop() if first else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": RUN, "raw_path": RUN.encode(), "query_string": b""}
        await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)
        return sent

    start, body = asyncio.run(run())
    assert start["status"] == 408 and (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["errors"][0]["code"] == 3007


def test_the_ingress_checks_host_origin_and_token(demo: Llama):
    async def run() -> list[int]:
        app, handle, _ = await service(demo, token="secret", allow_origin=("https://a.example",))
        body = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
        right = {"authorization": "Bearer secret"}
        statuses = [
            (await call(app, RUN, body)).status,
            (await call(app, RUN, body, authorization="Bearer wrong")).status,
            (await call(app, RUN, body, **right, host="evil.example")).status,
            (await call(app, RUN, body, **right, origin="https://b.example")).status,
        ]
        assert not handle.asked
        allowed = await call(app, RUN, body, **right, origin="https://a.example")
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        return [*statuses, allowed.status, (await call(app, "/health", b"", method="GET")).status]

    assert asyncio.run(run()) == [401, 401, 400, 403, 200, 200]


def test_wrong_input_is_refused_in_the_words_of_the_plain_server(demo: Llama):
    async def run() -> list[Reply]:
        app, _, _ = await service(demo)
        wrong = (
            b"",
            b"[",
            b'{"prompt": 7}',
            b'{"prompt": "hi", "seed": null}',
            b'{"prompt":"hi","stream":true,"seed":null}',
        )
        return [await call(app, RUN, body) for body in wrong] + [await call(app, "/nowhere", b"{}")]

    *wrong, nowhere = asyncio.run(run())
    assert [reply.json()["errors"][0]["code"] for reply in wrong] == [3003, 5006, 5006, 5006, 5006]
    assert nowhere.status == 404
