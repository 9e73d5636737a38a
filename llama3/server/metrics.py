"""The metrics that `/metrics` returns, for Prometheus. They hold counts and times, and nothing of any prompt."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # seconds


class Metrics:
    def __init__(self, in_flight: Callable[[], int]):
        """in_flight: returns the number of requests that run or wait at that moment."""
        self.registry = CollectorRegistry()
        self.requests = Counter("llama3_requests", "Requests, by HTTP status", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "llama3_request_seconds", "From a request to the end of its answer", buckets=BUCKETS, registry=self.registry
        )
        self.tokens = Counter("llama3_tokens", "Tokens, by kind", ["kind"], registry=self.registry)
        gauge = Gauge("llama3_requests_in_flight", "Requests that run or wait for a slot", registry=self.registry)
        gauge.set_function(in_flight)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
