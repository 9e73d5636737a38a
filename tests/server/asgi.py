"""Call an ASGI application inside the test process, without a network."""

import asyncio
import json
from typing import Any, NamedTuple

from llama3.model_names import MODELS

RUN = f"/client/v4/accounts/me/ai/run/{MODELS[0]}"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The decoded events of a stream, without the [DONE] that must end it."""
        assert self.headers["content-type"] == "text/event-stream"
        *events, done, rest = self.body.decode().split("\n\n")
        assert done == "data: [DONE]" and rest == "" and all(event.startswith("data: {") for event in events)
        return [json.loads(event.removeprefix("data: ")) for event in events]


async def call(
    app: Any, path: str, body: bytes, method: str = "POST", query: str = "", disconnects: bool = False, **headers: str
) -> Reply:
    """Send one request. In header names, write _ for -. disconnects: the client leaves right after the request."""
    sent: list[dict[str, Any]] = []
    all_headers = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 9),
        "scheme": "http",
        "root_path": "",
    }
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await (asyncio.sleep(0.01) if disconnects else asyncio.Event().wait())
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    response_headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], response_headers, b"".join(message.get("body", b"") for message in rest))
