"""`llama3 serve --ray` as a program of its own on a cluster in a network of loopback, and connections to it."""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.ray.loopback import SKIP, Loopback
from tests.server.running import RunningServer

CLONE_NEWNET = 0x40000000  # from the kernel's sched.h
REPLICA, INGRESS = "ray::ServeReplica:llama3:Replica", "ray::ServeReplica:llama3:Ingress"


@contextlib.contextmanager
def inside(network: Loopback) -> Iterator[None]:
    """In the `with` block, this thread makes its sockets in the network. It must be root."""
    here, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), f"/proc/{network.holder.pid}/ns/net"
    with open(there) as target:
        try:
            if ctypes.CDLL(None).setns(target.fileno(), CLONE_NEWNET):
                pytest.skip(SKIP)
            yield
        finally:
            ctypes.CDLL(None).setns(here, CLONE_NEWNET)
            os.close(here)


class RunningService(RunningServer):
    """The demo on a Ray cluster."""

    def __init__(self, network: Loopback, environment: dict[str, str], address: str, *options: str):
        self.network = network
        with inside(network), socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "llama3.cli", "serve", "--ray", address, "--port", str(self.port), "--quiet"]
        self.process = subprocess.Popen(
            network.command(*command, *options), env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(self.process.stderr.read() if self.process.stderr else "")
            with contextlib.suppress(OSError):
                if self.get("/health").startswith(b"HTTP/1.1 200"):
                    return
            time.sleep(0.2)
        raise AssertionError("the service did not become healthy within two minutes")

    def stop(self) -> int:
        """SIGTERM -> the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def connect(self) -> socket.socket:
        with inside(self.network):
            return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def samples(self, name: str) -> dict[str, float]:
        """The values of a metric, by replica."""
        found: dict[str, float] = {}
        for replica, value in re.findall(rf'^{name}{{replica="(\w+)".*}} (\S+)$', self.get("/metrics").decode(), re.M):
            found[replica] = found.get(replica, 0) + float(value)
        return found

    def in_flight(self) -> float:
        return sum(self.samples("llama3_requests_in_flight").values())

    def replicas(self) -> list[int]:
        """The process ids of the replicas."""
        return self.network.processes(REPLICA)


class ServeCluster:
    """Starts the service when a test needs it and the test before has ended it."""

    def __init__(self, network: Loopback, environment: dict[str, str], address: str):
        self.network, self.environment, self.address = network, environment, address
        self.service: RunningService | None = None

    def running(self) -> RunningService:
        if self.service is None:
            options = ("--replicas", "2", "--limit", "seconds=2", "--queue", "8")
            self.service = RunningService(self.network, self.environment, self.address, *options)
        return self.service

    def stop(self) -> None:
        """End the service; its exit code must be 0."""
        if self.service is not None:
            service, self.service = self.service, None
            with service:
                assert service.stop() == 0

    def run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        command = self.network.command(*argv)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)


def texts(raw: bytes) -> list[str]:
    """The texts of a stream's events; the stream must be whole."""
    headers, _, body = raw.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200"), raw[:300]
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]" and body.endswith(b"0\r\n\r\n"), raw[-300:]
    decoded = [json.loads(event) for event in events[:-1]]
    assert "usage" in decoded[-1], decoded[-1]
    return [event["response"] for event in decoded]
