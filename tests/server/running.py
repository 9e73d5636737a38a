"""Start `llama3 serve` as a process of its own and talk to it over a plain socket."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.server.asgi import RUN

ROOT = str(Path(__file__).parents[2])
SHORT = {"prompt": "What is RoPE?", "max_tokens": 5, "seed": 1}
# With this seed the demo does not stop by itself, so this takes long.
LONG = {"prompt": "Go on", "max_tokens": 1500, "temperature": 5, "seed": 14, "stream": True}


class RunningServer:
    """`llama3 serve` with the demo, one slot, and a free port."""

    def __init__(self, *options: str, first: str = ""):
        """first: a Python statement that the process executes before it starts the server."""
        self.port = free_port()
        start = f"{first}\nfrom llama3.cli import main; main()"
        command = [sys.executable, "-c", start, "serve", "--port", str(self.port), "--slots", "1", "--quiet"]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(self.process.stderr.read() if self.process.stderr else "")
            try:
                if self.get("/health").startswith(b"HTTP/1.1 200"):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError("the server did not become healthy within a minute")

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, raw: bytes) -> bytes:
        """Send these bytes, and return everything that the server sends until it closes the connection."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # the server may have closed already; its response can still be read
                connection.sendall(raw)
            return read_all(connection)

    def get(self, path: str) -> bytes:
        return self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    def post(self, inputs: dict, path: str = RUN) -> tuple[int, object]:
        """The status and the decoded body of the response."""
        headers, _, body = self.send(post_request(inputs, path)).partition(b"\r\n\r\n")
        return int(headers.split()[1]), json.loads(body)

    def in_flight(self) -> float:
        found = re.search(rb"^llama3_requests_in_flight (\S+)$", self.get("/metrics"), re.M)
        assert found
        return float(found[1])

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def environment() -> dict[str, str]:
    """The environment of a server: this process's, without the options that the user's variables may set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA3_")}
    return {**kept, "PYTHONPATH": ROOT}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def post_request(inputs: dict, path: str = RUN) -> bytes:
    """The bytes of an HTTP request with this JSON body."""
    body = json.dumps(inputs).encode()
    headers = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return headers.encode() + body


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found
