"""The routes, without a network: every body gets the documented envelope, and none a 500 or silence."""

import asyncio
import gc
import json
import random
import weakref

import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3 import Llama
from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.server.app import MODELS, Service, make_app
from llama3.server.body import Bodies
from tests.server.calling import RUN, call
from tests.test_workers_ai import any_inputs
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer

JSON = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=512)
    folder = write_hf(tmp_path_factory.mktemp("served"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=4)


def asked(llama, *requests, queue=8, token=None, hosts=(), ready=True):
    """The replies to these calls, (path, body) or (path, body, headers), one after the other."""

    async def run():
        service = Service(lambda: llama, 4, queue)
        service.llama = llama if ready else None
        app = make_app(service, token, hosts)
        replies = [await call(app, path, body, **(more[0] if more else {})) for path, body, *more in requests]
        assert service.in_flight == 0
        return replies

    return asyncio.run(run())


def body(**inputs):
    return json.dumps(inputs).encode()


def test_a_prompt_is_answered_as_run_answers_it(llama):
    inputs = {"prompt": "Hello", "max_tokens": 9, "seed": 4}
    rest, streamed, binding = asked(
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


def test_the_model_may_be_written_in_four_ways_and_no_other(llama):
    base = "/client/v4/accounts/any/ai/run/"
    *good, bad, binding = asked(
        llama,
        *((base + model, body(prompt="a", max_tokens=1)) for model in MODELS),  # %2F is a slash by now
        (base + "@hf/other", b"{}"),
        ("/run", body(inputs={}), {"cf_consn_model_id": "x"}),
    )
    assert [reply.status for reply in good] == [200, 200]
    assert bad.status == 400 and bad.json()["errors"][0]["code"] == 5007 and bad.json()["result"] == {}
    assert binding.status == 400 and binding.json()["internalCode"] == 5007 and binding.json()["name"] == "AiError"


@pytest.mark.parametrize(
    ("given", "status", "code", "says"),
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
def test_a_breach_has_its_code_in_both_shapes(llama, given, status, code, says):
    inner = b'{"inputs": ' + given + b"}" if given[:1] == b"{" and len(given) < 999 else given
    rest, binding = asked(llama, (RUN, given), ("/run", inner))
    assert (rest.status, rest.json()["errors"][0]["code"]) == (status, code)
    assert rest.json()["success"] is False and rest.json()["result"] == {} and rest.json()["messages"] == []
    assert says in rest.json()["errors"][0]["message"]
    assert binding.status in (status, 400) and binding.json()["httpCode"] == binding.status
    assert binding.json()["message"].startswith("AiError: ") and binding.json()["description"]


def test_twenty_thousand_requests_get_a_documented_answer(llama):
    dice, seen = random.Random(5), dict.fromkeys((200, 400, 413), 0)

    def one():
        inputs = any_inputs(dice)
        if inputs.get("max_tokens", 9) not in (1, 2, 3, 4):
            inputs["max_tokens"] = 1
        if dice.random() < 0.7:  # most are wrong, and the wrong are quick
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
        for i in range(20_000):
            binding = i % 7 == 0
            sent = one()
            reply = await call(app, *(("/run", b'{"inputs":' + sent + b"}") if binding else (RUN, sent)))
            seen[reply.status] += 1  # a status that is not among the three is a KeyError
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
    assert seen[200] > 1000 and seen[400] > 10_000


def test_the_token_opens_all_doors_but_that_of_health(llama):
    right, wrong = {"authorization": "Bearer secret"}, {"authorization": "Bearer secre"}
    given = body(prompt="a", max_tokens=1)
    replies = asked(
        llama,
        *((RUN, given, headers) for headers in (right, wrong, {}, {"authorization": "secret"})),
        ("/nowhere", b""),
        ("/health", b"", {"method": "GET"}),
        token="secret",
    )
    assert [reply.status for reply in replies] == [200, 401, 401, 401, 401, 200]
    assert replies[1].json() == {
        "result": None,
        "success": False,
        "errors": [{"message": "Authentication error", "code": 10000}],
        "messages": [],
    }


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("WORKERS-BINDING.ai", 200),
        ("mine.example:80", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("", 400),
    ],
)
def test_only_hosts_that_are_meant_are_served(llama, host, status):
    (reply,) = asked(llama, ("/health", b"", {"method": "GET", "host": host}), hosts=("mine.example",))
    assert reply.status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:8000", 200), ("http://127.0.0.1", 200), ("https://evil.example", 403), ("null", 403)],
)
def test_pages_of_other_sites_are_not_served(llama, origin, status):
    (reply,) = asked(llama, (RUN, body(prompt="a", max_tokens=1), {"origin": origin}))
    assert reply.status == status


def test_what_is_not_there_is_said_in_the_envelope(llama):
    replies = asked(
        llama,
        ("/nowhere", b""),
        (RUN, b"", {"method": "GET"}),
        (RUN + "/", body(prompt="a")),
        ("/client/v4/accounts/me/ai/run", b"{}"),
    )
    assert [reply.status for reply in replies] == [404, 405, 400, 404]
    assert [reply.json()["errors"][0]["code"] for reply in replies] == [7000, 7001, 5007, 7000]


def test_a_texts_tokens_are_told(llama):
    fine, wrong, begun_twice = asked(
        llama,
        ("/tokenize", body(text="the cat")),
        ("/tokenize", body(text=7)),
        ("/tokenize", body(text="a<|begin_of_text|>")),
    )
    assert [token["id"] for token in fine.json()["tokens"]] == llama.encode("the cat")
    assert wrong.status == begun_twice.status == 400 and "'/text'" in wrong.json()["errors"][0]["message"]


def test_until_the_model_is_there_it_says_so(llama):
    health, run = asked(llama, ("/health", b"", {"method": "GET"}), (RUN, body(prompt="a")), ready=False)
    assert health.status == run.status == 503 and health.json() == {"status": "loading"}


def test_more_than_slots_and_queue_hold_is_refused_and_the_rest_is_answered(llama):
    async def run():
        service = Service(lambda: llama, 4, 3)
        service.llama = llama
        app = make_app(service)
        return await asyncio.gather(*(call(app, RUN, body(prompt="a", max_tokens=60)) for _ in range(20)))

    replies = asyncio.run(run())
    full = [reply for reply in replies if reply.status == 429]
    assert len(full) == 13 and all(reply.status == 200 for reply in replies if reply not in full)
    assert full[0].json()["errors"][0]["code"] == 3040 and full[0].headers["retry-after"] == "1"


def test_what_still_runs_when_the_grace_time_ends_says_so(llama):
    """Whole answers on both routes: not one that is cut short passes for a whole one."""

    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service)
        long = {"prompt": "a", "max_tokens": 480, "temperature": 5, "seed": 1}
        running = [asyncio.create_task(call(app, path, body(**long))) for path in (RUN, "/v1/completions")]
        while len(service.running) < 2:
            await asyncio.sleep(0.01)
        service.end()
        return await asyncio.gather(*running)

    for reply in asyncio.run(run()):
        assert reply.status == 503 and reply.headers["retry-after"] == "1"
        assert reply.json()["errors"][0]["code"] == 3040


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"response_format": JSON}], ids=["whole", "stream", "JSON"])
@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
@pytest.mark.parametrize("path", [RUN, "/v1/chat/completions"], ids=["run", "chat"])
def test_an_answer_leaves_nothing_behind(llama, path, more, leaves):
    """Nor a circle of references: the garbage of a thousand requests would wait to be found."""
    more = {**more, "max_tokens": 300 if leaves else 5, "temperature": 2, "seed": 1}
    given = body(messages=[{"role": "user", "content": "a"}], **more)

    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app, asked = make_app(service), []
        for _ in range(12):
            task = asyncio.create_task(call(app, path, given, leaves=leaves))
            while not service.running:
                await asyncio.sleep(0)
            asked += [weakref.ref(stream) for stream in service.running]
            await task
        assert service.in_flight == 0
        return asked

    gc.collect()
    gc.disable()
    try:
        asked = asyncio.run(run())
        assert len(asked) == 12 and sum(stream() is not None for stream in asked) <= 2  # a thread knows its last task
    finally:
        gc.enable()


def test_bodies_that_are_arriving_are_bounded_together(monkeypatch):
    """Each may have a megabyte; all that are not whole yet may have 64."""
    monkeypatch.setattr("llama3.server.body.MAX_ARRIVING", 1000)

    async def run():
        bodies, waits = Bodies(), asyncio.Event()

        class Slow:
            async def stream(self):
                yield b"x" * 900
                await waits.wait()

        first = asyncio.create_task(bodies.read(Slow()))
        await asyncio.sleep(0)
        with pytest.raises(ContractError) as caught:
            await bodies.read(Slow())
        assert caught.value.status == 429
        waits.set()
        with pytest.raises(ContractError, match="not JSON"):
            await first
        assert bodies.arriving == 0

    asyncio.run(run())


def test_a_step_that_fails_ends_its_requests_and_no_others(llama, monkeypatch):
    step = llama.model.step

    def failing(*args):
        monkeypatch.setattr(llama.model, "step", step)
        raise MemoryError("no room")

    for stream in (False, True):
        monkeypatch.setattr(llama.model, "step", failing)
        failed, fine = asked(llama, *((RUN, body(prompt="a", max_tokens=3, stream=stream)) for _ in range(2)))
        errors = failed.events()[-1]["errors"] if stream else failed.json()["errors"]
        assert "no room" in errors[0]["message"] and errors[0]["code"] == 3043
        assert fine.status == 200


def test_the_figures_count_requests_by_status_and_tokens_and_say_nothing_else(llama, capsys):
    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service, quiet=False)
        for given in (body(prompt="secret", max_tokens=5), b"{", body(prompt="secret", max_tokens=3, stream=True)):
            await call(app, RUN, given)
        return await call(app, "/metrics", b"", "GET")

    found = asyncio.run(run()).body.decode()
    assert 'llama3_requests_total{status="200"} 2.0' in found and 'llama3_requests_total{status="400"} 1.0' in found
    assert 'llama3_tokens_total{kind="generated"} 8.0' in found and "llama3_requests_in_flight 0.0" in found
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["status"] for line in lines] == [200, 400, 200, 200]
    assert "secret" not in str(lines) and all(
        line.keys() == {"time", "method", "path", "status", "ms"} for line in lines
    )
