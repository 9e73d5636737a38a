"""One request of a batch: a line in OpenAI's form, or an input object of Workers AI, and its answer.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
        -> {"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}},
            "error": None}
    {"custom_id": "b", "prompt": "What is RoPE?"}
        -> {"custom_id": "b", "result": {...}, "success": True, "errors": [], "messages": []}

The body, or what stands beside the second custom_id, is what the server's route answers to the same request.
"""

import threading
from collections.abc import Mapping
from json import JSONDecodeError
from typing import Any, NamedTuple

from llama3.api_format import REST, ApiFormat, Llama
from llama3.errors import Llama3Error, RequestError
from llama3.json_text import encode_json, read_json
from llama3.limits import LIMITS
from llama3.openai_api.chat_completions import CHAT_COMPLETIONS
from llama3.openai_api.completions import COMPLETIONS
from llama3.openai_api.output import new_id
from llama3.openai_api.responses import RESPONSES
from llama3.workers_ai import Stream
from llama3.workers_ai_input import bad_input, json_type, to_contract_error

FORMATS = {
    "/v1/chat/completions": CHAT_COMPLETIONS,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
}
OPENAI_FIELDS = {"method", "url", "body"}  # a line that has any of them is in OpenAI's form


class BadLine(Exception):
    """A line that is no request. The code is one of OpenAI's, or made like them."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Line(NamedTuple):
    """An answer as a line of a file."""

    text: bytes  # JSON, without a newline
    tokens: int  # how many were generated
    error: str | None = None  # its message, if the answer is an error
    failed: bool = False  # the error is the model's, and the request may be right


class Answerer:
    """Answers requests with one model, each in one call, from any number of threads."""

    def __init__(self, llama: Llama):
        self.llama = llama
        self.running: set[Stream] = set()
        self.closed = False
        self._lock = threading.Lock()  # of the two above

    def answer(self, request: Any) -> dict[str, Any]:
        """The answer to a request, as an object. What is wrong with the request is part of the answer.

        Raises RequestError after `close`.
        """
        return self._answer(request)[0]

    def answer_line(self, text: bytes) -> Line:
        """The answer to a request that is a line of JSON."""
        try:
            request = read_line(text)
        except BadLine as error:
            return Line(encode_json(line_error(None, error)), 0, str(error))
        return self._answer(request)[1]

    def close(self) -> None:
        """End the requests that are running: the step that is being computed is their last."""
        with self._lock:
            self.closed = True
            running = list(self.running)
        for stream in running:
            stream.close()

    def _answer(self, request: Any) -> tuple[dict[str, Any], Line]:
        """The answer as an object and as a line."""
        custom_id = custom_id_of(request)
        try:
            api_format, body = read_request(request)
        except BadLine as error:
            refused = line_error(custom_id, error)
            return refused, Line(encode_json(refused), 0, str(error))
        status, reply, tokens = self._run(api_format, body)
        return complete(custom_id, api_format, status, reply, tokens)

    def _run(self, api_format: ApiFormat, body: Any) -> tuple[int, dict[str, Any], int]:
        """-> (the HTTP status, the body of the response, how many tokens were generated)."""
        stream: Stream | None = None
        try:
            if isinstance(body, Mapping) and body.get("stream") is True:
                raise bad_input("'/stream' is true, and an answer in a batch comes whole: leave it out")
            stream, parameters = api_format.start(self.llama, body)
            self._add(stream)
            reply = api_format.body(api_format.result(stream, parameters))
            if self.closed:  # it may have been cut short
                raise RequestError("the batch was stopped")
            encode_json(reply)  # raises ValueError for a number that JSON does not have
            return 200, reply, stream.usage.completion_tokens
        except Exception as error:
            if self.closed:
                raise RequestError("the batch was stopped before this answer was complete") from error
            refused = to_contract_error(error)
            return refused.status, api_format.error_body(refused), stream.usage.completion_tokens if stream else 0
        finally:
            if stream is not None:
                stream.close()
                with self._lock:
                    self.running.discard(stream)

    def _add(self, stream: Stream) -> None:
        with self._lock:
            if self.closed:
                raise RequestError("the batch was stopped")
            self.running.add(stream)


def complete(
    custom_id: str | None, api_format: ApiFormat, status: int, reply: dict[str, Any], tokens: int
) -> tuple[dict[str, Any], Line]:
    """-> the answer as an object and as a line. status, reply: the HTTP status and the body of the response."""
    if api_format is REST:
        answer = {"custom_id": custom_id, **reply}
    else:
        response = {"status_code": status, "request_id": new_id("req_"), "body": reply}
        answer = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": None}
    message = None if status == 200 else reply["errors"][0]["message"]
    return answer, Line(encode_json(answer), tokens, message, status >= 500)


def failure_line(text: bytes, message: str) -> Line:
    """The answer to a line of JSON for which the model elsewhere has failed. No model is needed here."""
    custom_id = None
    try:
        request = read_line(text)
        custom_id = custom_id_of(request)
        api_format, _ = read_request(request)
    except BadLine as error:
        return Line(encode_json(line_error(custom_id, error)), 0, str(error))
    failed = to_contract_error(Llama3Error(message))
    return complete(custom_id, api_format, failed.status, api_format.error_body(failed), 0)[1]


# ---- reading a line ----


def read_line(text: bytes) -> Any:
    """The JSON value of a line. Raises BadLine."""
    if len(text) > LIMITS.body_bytes:
        raise BadLine("line_too_long", f"the line has more than {LIMITS.body_bytes:,} bytes; expected a shorter one")
    try:
        return read_json(text.decode())
    except ValueError as error:
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, JSONDecodeError) else str(error)
        raise BadLine("invalid_json_line", f"the line is not JSON: {why}") from None


def read_request(request: Any) -> tuple[ApiFormat, Any]:
    """-> (the format in which it is answered, the body of the request). Raises BadLine."""
    if not isinstance(request, Mapping):
        raise BadLine("invalid_request", f"the line is JSON of type {json_type(request)}; expected an object")
    custom_id = request.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        raise BadLine("invalid_custom_id", f"custom_id is of type {json_type(custom_id)}; expected a string")
    if not OPENAI_FIELDS & request.keys():
        if not {"prompt", "messages"} & request.keys():
            raise BadLine("invalid_request", "the line has no url and body, and no prompt or messages; expected either")
        return REST, {name: value for name, value in request.items() if name != "custom_id"}
    if request.get("method", "POST") != "POST":
        raise BadLine("invalid_method", f"method is {str(request['method'])[:40]!r}; expected 'POST'")
    url = request.get("url")
    if not isinstance(url, str) or url not in FORMATS:
        raise BadLine("invalid_url", f"url is {str(url)[:100]!r}; expected one of {', '.join(FORMATS)}")
    if "body" not in request:
        raise BadLine("invalid_request", "the line has a url and no body; expected the request in body")
    return FORMATS[url], request["body"]


def custom_id_of(request: Any) -> str | None:
    custom_id = request.get("custom_id") if isinstance(request, Mapping) else None
    return custom_id if isinstance(custom_id, str) else None


def line_error(custom_id: str | None, error: BadLine) -> dict[str, Any]:
    problem = {"code": error.code, "message": str(error)}
    return {"id": new_id("batch_req_"), "custom_id": custom_id, "response": None, "error": problem}


# ---- recognising an answer ----

BEGINNINGS = (b'{"id":"batch_req_', b'{"custom_id":')  # how each answer begins


def is_answer(value: Any) -> bool:
    return isinstance(value, dict) and "custom_id" in value and ("response" in value or "result" in value)


def may_answer(answer: bytes, request: bytes) -> bool:
    """Whether the one line may be the answer to the other: they have the same form and the same custom_id."""
    try:
        found = read_json(answer.decode())
    except ValueError:
        return False
    name, custom_id = "response", None
    try:
        wanted = read_line(request)
        custom_id = custom_id_of(wanted)
        name = "result" if read_request(wanted)[0] is REST else name
    except BadLine:
        pass  # its answer is in OpenAI's form
    return is_answer(found) and found["custom_id"] == custom_id and name in found
