"""Send requests to the application without a network, one after the other."""

import asyncio
import json
from typing import Any

from llama3 import Llama
from llama3.server.app import make_app
from llama3.server.service import Service
from tests.server.asgi import Reply, call

ASK = [{"role": "user", "content": "What is RoPE?"}]


def post(llama: Llama, path: str, *bodies: dict[str, Any], token: str | None = None) -> list[Reply]:
    """The replies to these bodies, sent to one path."""

    async def run() -> list[Reply]:
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service, token)
        replies = [await call(app, path, json.dumps(body).encode()) for body in bodies]
        assert service.in_flight == 0
        return replies

    return asyncio.run(run())


def message_of(reply: Reply) -> str:
    """The message of an error of the status 400, which is the same in both of its objects."""
    assert reply.status == 400, reply.body
    found = reply.json()
    assert found["error"]["message"] == found["errors"][0]["message"]
    return str(found["error"]["message"])
