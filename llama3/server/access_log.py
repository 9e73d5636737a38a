"""The access log: one JSON line per request on standard error. No prompt is in it."""

import contextlib
import json
import sys
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama3.server.metrics import Metrics


class AccessLog:
    """ASGI middleware that writes the access log, unless `quiet`, and counts each request in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, quiet: bool):
        self.app, self.metrics, self.quiet = app, metrics, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.monotonic(), 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            seconds = time.monotonic() - start
            self.metrics.requests.labels(status).inc()
            self.metrics.seconds.observe(seconds)
            if not self.quiet:
                line = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "method": scope["method"][:20],
                    "path": scope["path"][:200],
                    "status": status,
                    "ms": round(1000 * seconds, 1),
                }
                with contextlib.suppress(OSError):  # standard error may be closed, or a full disk
                    print(json.dumps(line), file=sys.stderr, flush=True)
