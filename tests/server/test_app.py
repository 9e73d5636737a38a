"""The routes, called without a network: every request body gets a documented response, and none an HTTP 500."""

import asyncio
import gc
import json
import random
import weakref

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.limits import LIMITS
from llama3.model_names import MODELS
from llama3.server.app import make_app
from llama3.server.service import Service
from tests.server.asgi import RUN, call
from tests.test_workers_ai_input import any_inputs
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer

JSON = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=512)
    folder = write_hf(tmp_path_factory.mktemp("served"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=4)


def send(llama, *requests, queue=8, token=None, hosts=(), loaded=True):
    """The replies to these requests, (path, body) or (path, body, headers), sent one after the other."""

    async def run():
        service = Service(lambda: llama, 4, queue)
        service.llama = llama if loaded else None
        app = make_app(service, token, hosts)
        replies = [await call(app, path, body, **(more[0] if more else {})) for path, body, *more in requests]
        assert service.in_flight == 0
        return replies

    return asyncio.run(run())


def body(**inputs):
    return json.dumps(inputs).encode()


def test_all_routes_give_the_answer_of_run(llama):
    inputs = {"prompt": "Hello", "max_tokens": 9, "seed": 4}
    rest, streamed, binding = send(
        llama,
        (RUN, body(**inputs)),
        (RUN, body(**inputs, stream=True)),
        ("/run", body(inputs=inputs, options={})),
    )
    expected = llama.run(inputs)
    assert rest.json() == {"result": expected, "success": True, "errors": [], "messages": []}
    assert binding.json() == expected and rest.status == streamed.status == binding.status == 200
    *pieces, last = streamed.events()
    assert "".join(piece["response"] for piece in pieces) == expected["response"] and last["usage"] == expected["usage"]
    assert all(isinstance(piece["response"], str) and piece["p"] for piece in pieces)


def test_known_models_are_served_and_others_are_refused(llama):
    base = "/client/v4/accounts/any/ai/run/"
    *good, bad, binding = send(
        llama,
        *((base + model, body(prompt="a", max_tokens=1)) for model in MODELS),
        (base + "@hf/other", b"{}"),
        ("/run", body(inputs={}), {"cf_consn_model_id": "x"}),
    )
    assert [reply.status for reply in good] == [200, 200]
    assert bad.status == 400 and bad.json()["errors"][0]["code"] == 5007 and bad.json()["result"] == {}
    assert binding.status == 400 and binding.json()["internalCode"] == 5007 and binding.json()["name"] == "AiError"


@pytest.mark.parametrize(
    ("sent", "status", "code", "message"),
    [
        (b"", 400, 3003, "missing"),
        (b"{", 400, 5006, "not JSON"),
        (b'{"prompt": NaN}', 400, 5006, "not JSON"),
        (b'{"prompt": "\\ud800"}', 400, 5006, "not JSON"),
        (b"\xff", 400, 5006, "not JSON"),
        (b"[" * 100_000, 400, 5006, "not JSON"),
        (b"[]", 400, 5006, "'array' not in 'object'"),
        (b"x" * (LIMITS.body_bytes + 1), 413, 3006, "too large"),
        (body(prompt="a", temperature=5.1), 400, 5006, "'/temperature' must be <= 5"),
        (body(prompt="a", max_tokens=600), 413, 5021, "context window limit (512)"),
        (body(prompt="a", lora="x"), 400, 5006, "'/lora' names"),
        (body(prompt="a", max_tokens=2, response_format=JSON), 400, 5024, "JSON Mode couldn't be met"),
        (body(prompt="a", response_format={"type": "json_schema", "json_schema": {"not": {}}}), 400, 5006, "enforced"),
    ],
)  # fmt: skip
def test_wrong_input_has_its_error_code_in_both_formats(llama, sent, status, code, message):
    inner = b'{"inputs": ' + sent + b"}" if sent[:1] == b"{" and len(sent) < 999 else sent
    rest, binding = send(llama, (RUN, sent), ("/run", inner))
    assert (rest.status, rest.json()["errors"][0]["code"]) == (status, code)
    assert rest.json()["success"] is False and rest.json()["result"] == {} and rest.json()["messages"] == []
    assert message in rest.json()["errors"][0]["message"]
    assert binding.status in (status, 400) and binding.json()["httpCode"] == binding.status
    assert binding.json()["message"].startswith("AiError: ") and binding.json()["description"]


@pytest.mark.parametrize("n", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_random_requests_get_a_documented_response(llama, n):
    dice, seen = random.Random(5), dict.fromkeys((200, 400, 413), 0)

    def random_body():
        inputs = any_inputs(dice)
        if inputs.get("max_tokens", 9) not in (1, 2, 3, 4):
            inputs["max_tokens"] = 1
        if dice.random() < 0.7:  # make most requests wrong: those are answered quickly
            inputs[dice.choice(["temperature", "top_p", "top_k", "seed"])] = dice.choice([None, -1, "x", [], {}])
        text = json.dumps(inputs)
        if dice.random() < 0.3:
            at = dice.randrange(len(text))
            text = text[:at] + dice.choice(['"', "}", "\\", "\x00", "é", "[", ",", ""]) + text[at + 1 :]
        return text.encode()

    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service)
        for i in range(n):
            binding = i % 7 == 0
            sent = random_body()
            reply = await call(app, *(("/run", b'{"inputs":' + sent + b"}") if binding else (RUN, sent)))
            seen[reply.status] += 1  # a KeyError for any other status
            if reply.headers["content-type"] == "text/event-stream":
                assert "usage" in reply.events()[-1] or reply.events()[-1]["errors"][0]["code"] == 5024
            elif reply.status == 200:
                found = reply.json() if binding else reply.json()["result"]
                assert isinstance(found["response"], str) and found["tool_calls"] == [] and "usage" in found
            else:
                found = reply.json()
                code = found["internalCode"] if binding else found["errors"][0]["code"]
                assert code in (5006, 5021, 5024) and (binding or found["success"] is False)
        assert service.in_flight == 0

    asyncio.run(run())
    assert seen[200] > n / 20 and seen[400] > n / 2


def test_unknown_routes_and_methods_are_refused_in_the_envelope(llama):
    replies = send(
        llama,
        ("/nowhere", b""),
        (RUN, b"", {"method": "GET"}),
        (RUN + "/", body(prompt="a")),
        ("/client/v4/accounts/me/ai/run", b"{}"),
    )
    assert [reply.status for reply in replies] == [404, 405, 400, 404]
    assert [reply.json()["errors"][0]["code"] for reply in replies] == [7000, 7001, 5007, 7000]


def test_tokenize_returns_the_tokens_of_a_text(llama):
    fine, wrong, second_begin = send(
        llama,
        ("/tokenize", body(text="the cat")),
        ("/tokenize", body(text=7)),
        ("/tokenize", body(text="a<|begin_of_text|>")),
    )
    assert [token["id"] for token in fine.json()["tokens"]] == llama.encode("the cat")
    assert wrong.status == second_begin.status == 400 and "'/text'" in wrong.json()["errors"][0]["message"]


def test_until_the_model_is_loaded_the_status_is_503(llama):
    health, run = send(llama, ("/health", b"", {"method": "GET"}), (RUN, body(prompt="a")), loaded=False)
    assert health.status == run.status == 503 and health.json() == {"status": "loading"}


def test_requests_beyond_slots_and_queue_get_429_and_the_others_are_answered(llama):
    async def run():
        service = Service(lambda: llama, 4, 3)
        service.llama = llama
        app = make_app(service)
        return await asyncio.gather(*(call(app, RUN, body(prompt="a", max_tokens=60)) for _ in range(20)))

    replies = asyncio.run(run())
    full = [reply for reply in replies if reply.status == 429]
    assert len(full) == 13 and all(reply.status == 200 for reply in replies if reply not in full)
    assert full[0].json()["errors"][0]["code"] == 3040 and full[0].headers["retry-after"] == "1"


def test_requests_cancelled_at_shutdown_get_an_error(llama):
    """The answers are not streamed here: a client must not take one that was cut off for a complete one."""

    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service)
        long = {"prompt": "a", "max_tokens": 480, "temperature": 5, "seed": 1}
        running = [asyncio.create_task(call(app, path, body(**long))) for path in (RUN, "/v1/completions")]
        while len(service.running) < 2:
            await asyncio.sleep(0.01)
        service.cancel_running()
        return await asyncio.gather(*running)

    for reply in asyncio.run(run()):
        assert reply.status == 503 and reply.headers["retry-after"] == "1"
        assert reply.json()["errors"][0]["code"] == 3040


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"response_format": JSON}], ids=["whole", "stream", "JSON"])
@pytest.mark.parametrize("disconnects", [False, True], ids=["stays", "disconnects"])
@pytest.mark.parametrize("path", [RUN, "/v1/chat/completions"], ids=["run", "chat"])
def test_a_finished_request_leaves_no_stream_in_memory(llama, path, more, disconnects):
    """There must not even be reference cycles, which would stay in memory until the garbage collector runs."""
    more = {**more, "max_tokens": 300 if disconnects else 5, "temperature": 2, "seed": 1}
    sent = body(messages=[{"role": "user", "content": "a"}], **more)

    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app, streams = make_app(service), []
        for _ in range(12):
            task = asyncio.create_task(call(app, path, sent, disconnects=disconnects))
            while not service.running:
                await asyncio.sleep(0)
            streams += [weakref.ref(stream) for stream in service.running]
            await task
        assert service.in_flight == 0
        return streams

    gc.collect()
    gc.disable()
    try:
        streams = asyncio.run(run())
        alive = sum(stream() is not None for stream in streams)
        assert len(streams) == 12 and alive <= 2  # a thread may still hold its last task
    finally:
        gc.enable()


def test_a_fault_while_an_answer_is_written_is_an_internal_error_and_not_a_stop(llama, monkeypatch):
    def fail(usage):
        raise AttributeError("no such name")

    monkeypatch.setattr("llama3.completion.Usage.as_dict", fail)
    (reply,) = send(llama, (RUN, body(prompt="a", max_tokens=2)))
    (error,) = reply.json()["errors"]
    assert (reply.status, error["code"]) == (500, 3043) and "no such name" in error["message"]


def test_a_failed_step_ends_its_requests_and_no_others(llama, monkeypatch):
    step = llama.model.step

    def failing(*args):
        monkeypatch.setattr(llama.model, "step", step)
        raise MemoryError("no room")

    for stream in (False, True):
        monkeypatch.setattr(llama.model, "step", failing)
        failed, fine = send(llama, *((RUN, body(prompt="a", max_tokens=3, stream=stream)) for _ in range(2)))
        errors = failed.events()[-1]["errors"] if stream else failed.json()["errors"]
        assert "no room" in errors[0]["message"] and errors[0]["code"] == 3043
        assert fine.status == 200


def test_metrics_and_access_log_count_requests_and_tokens_and_hold_no_prompt(llama, capsys):
    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service, quiet=False)
        for sent in (body(prompt="secret", max_tokens=5), b"{", body(prompt="secret", max_tokens=3, stream=True)):
            await call(app, RUN, sent)
        return await call(app, "/metrics", b"", "GET")

    found = asyncio.run(run()).body.decode()
    assert 'llama3_requests_total{status="200"} 2.0' in found and 'llama3_requests_total{status="400"} 1.0' in found
    assert 'llama3_tokens_total{kind="generated"} 8.0' in found and "llama3_requests_in_flight 0.0" in found
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["status"] for line in lines] == [200, 400, 200, 200]
    assert "secret" not in str(lines) and all(
        line.keys() == {"time", "method", "path", "status", "ms"} for line in lines
    )
