"""One request of a batch: its two forms, everything that can be wrong with it, and which answer belongs to it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama3 import Llama
from llama3.batch_request import BEGINNINGS, FORMATS, Answerer, failure_line, may_answer
from llama3.errors import Llama3Error
from llama3.limits import LIMITS

CHAT = {"messages": [{"role": "user", "content": "What is RoPE?"}], "max_tokens": 4, "seed": 1}


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(Llama.load(slots=2))


def openai(body: Any, **more: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


def test_a_line_in_openai_s_form_is_answered_in_its_form(answerer: Answerer):
    answer = answerer.answer(openai(CHAT))
    assert list(answer) == ["id", "custom_id", "response", "error"]
    assert answer["id"].startswith("batch_req_") and answer["custom_id"] == "a" and answer["error"] is None
    response = answer["response"]
    assert response["status_code"] == 200 and response["request_id"].startswith("req_")
    assert response["body"]["usage"]["completion_tokens"] == 4


def test_an_input_of_workers_ai_is_answered_in_its_envelope(answerer: Answerer):
    answer = answerer.answer({"custom_id": "b", **CHAT})
    assert list(answer) == ["custom_id", "result", "success", "errors", "messages"]
    assert answer["custom_id"] == "b" and answer["success"]
    assert answer["result"] == answerer.llama.run(CHAT)
    assert answerer.answer(CHAT)["custom_id"] is None


def test_a_method_may_be_left_out(answerer: Answerer):
    request = openai(CHAT)
    del request["method"]
    assert answerer.answer(request)["response"]["status_code"] == 200


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b"What is RoPE?", "invalid_json_line", "not JSON: Expecting value at character 1"),
        (b'{"prompt": "a"', "invalid_json_line", "not JSON"),
        (b'{"prompt": NaN}', "invalid_json_line", "NaN is not a number in JSON"),
        (b"\xff\xfe{\x00}\x00", "invalid_json_line", "utf-8"),
        (b"[" * 100_000, "invalid_json_line", "nested too deeply"),
        (b"9" * 10_000, "invalid_json_line", "not JSON"),
        (b'"' + b"a" * LIMITS.body_bytes, "line_too_long", "more than 1,048,576 bytes"),
        (b"[]", "invalid_request", "JSON of type array; expected an object"),
        (b"null", "invalid_request", "type null"),
        (b"{}", "invalid_request", "no url and body, and no prompt or messages"),
        (b'{"custom_id": 7, "prompt": "a"}', "invalid_custom_id", "type integer; expected a string"),
        (b'{"url": "/v1/embeddings", "body": {}}', "invalid_url", "'/v1/embeddings'; expected one of /v1/chat/"),
        (b'{"url": ["/v1"], "body": {}}', "invalid_url", "expected one of"),
        (b'{"body": {"prompt": "a"}}', "invalid_url", "url is 'None'; expected"),
        (b'{"method": "GET", "url": "/v1/completions", "body": {}}', "invalid_method", "'GET'; expected 'POST'"),
        (b'{"url": "/v1/completions"}', "invalid_request", "url and no body"),
    ],
)
def test_a_line_that_is_no_request_is_answered_with_an_error(answerer: Answerer, line: bytes, code: str, says: str):
    text, tokens, message, failed = answerer.answer_line(line)
    answer = json.loads(text)
    assert answer["response"] is None and answer["error"]["code"] == code
    assert says in answer["error"]["message"] == message and "\n" not in message and len(message) < 200
    assert tokens == 0 and not failed


@pytest.mark.parametrize("url", FORMATS)
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"stream": True}, "'/stream' is true, and an answer in a batch comes whole: leave it out"),
        ({"model": "gpt-4o"}, "No such model gpt-4o"),
        ({"n": 2}, "'/n' is not served here"),
        ({}, "Type mismatch"),
        (None, "Type mismatch of '/'"),
        ("a", "Type mismatch of '/'"),
    ],
)
def test_a_request_that_is_refused_has_the_status_and_body_of_the_route(
    answerer: Answerer, url: str, body: Any, says: str
):
    answer = answerer.answer(openai(body, url=url))
    assert answer["error"] is None and answer["response"]["status_code"] == 400
    assert says in answer["response"]["body"]["error"]["message"]


def test_inputs_of_workers_ai_that_are_refused_have_its_envelope(answerer: Answerer):
    answer = answerer.answer({"custom_id": "b", "prompt": "a", "stream": True})
    assert list(answer) == ["custom_id", "errors", "success", "result", "messages"]
    assert not answer["success"] and "leave it out" in answer["errors"][0]["message"]


def test_a_model_that_fails_is_told_apart_from_a_request_that_is_wrong(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise Llama3Error("the device is gone")

    monkeypatch.setattr(answerer.llama.model, "step", fail)
    line = answerer.answer_line(json.dumps(openai(CHAT)).encode())
    assert line.failed and line.error == "AiError: the device is gone"
    assert json.loads(line.text)["response"]["status_code"] == 500


def test_a_failure_elsewhere_is_answered_in_the_request_s_form():
    for request in (openai(CHAT), {"custom_id": "b", **CHAT}, openai(CHAT, url="/v1/none"), 5):
        text = json.dumps(request).encode()
        line = failure_line(text, "the process was lost")
        wrong = request == 5 or request.get("url") == "/v1/none"  # then that is the error
        assert line.failed is not wrong and line.error and ("the process was lost" in line.error) is not wrong
        assert may_answer(line.text, text)


def test_an_answer_belongs_to_requests_of_its_form_and_its_custom_id(answerer: Answerer):
    requests = [openai(CHAT), openai(CHAT, custom_id="b"), openai(None), CHAT, {"custom_id": "b", **CHAT}, 5]
    lines = [json.dumps(request).encode() for request in requests]
    answers = [answerer.answer_line(line).text for line in lines]
    assert all(answer.startswith(BEGINNINGS) for answer in answers)
    fits = [[may_answer(answer, line) for line in lines] for answer in answers]
    same = {(0, 2), (2, 0)}  # two requests with one custom_id
    assert fits == [[i == j or (i, j) in same for j in range(len(lines))] for i in range(len(lines))]
    for other in (b"", b"[]", b"7", b"{}", b'{"custom_id": "a"}', b'{"custom_id":', b"\xff"):
        assert not any(may_answer(other, line) for line in lines)


def test_no_package_of_the_extra_server_is_needed():
    blocked = ("starlette", "uvicorn", "msgspec", "prometheus_client", "anyio", "h11")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from llama3 import Llama; import llama3.batch_file, llama3.cli.batch\n"
        "bodies = [{'url': '/v1/completions', 'body': {'prompt': 'a', 'max_tokens': 2}}, {'prompt': 'a', 'seed': 1}]\n"
        "print(sum('result' in a or a['response']['status_code'] == 200 for a in Llama.load().batch(bodies)))"
    )
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120)
    assert ran.stdout == "2\n", ran.stderr
