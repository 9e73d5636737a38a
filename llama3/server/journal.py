"""What happened: one line of JSON on standard error a request, and the figures of /metrics. No prompt is in either."""

import json
import sys
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Figures:
    def __init__(self, in_flight: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter("llama3_requests", "Requests, by HTTP status", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "llama3_request_seconds", "From a request to the end of its answer", buckets=SECONDS, registry=self.registry
        )
        self.tokens = Counter("llama3_tokens", "Tokens, by kind", ["kind"], registry=self.registry)
        gauge = Gauge("llama3_requests_in_flight", "Requests that run or wait for a slot", registry=self.registry)
        gauge.set_function(in_flight)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))


class Journal:
    def __init__(self, app: ASGIApp, figures: Figures, quiet: bool):
        self.app, self.figures, self.quiet = app, figures, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            seconds = time.monotonic() - start
            self.figures.requests.labels(status).inc()
            self.figures.seconds.observe(seconds)
            if not self.quiet:
                line = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "method": scope["method"][:20],
                    "path": scope["path"][:200],
                    "status": status,
                    "ms": round(1000 * seconds, 1),
                }
                print(json.dumps(line), file=sys.stderr, flush=True)
