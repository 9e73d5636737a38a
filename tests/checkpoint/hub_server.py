"""A small hub on 127.0.0.1 with the part of the Hugging Face hub's API that a download uses, and with faults on demand.

GET /api/models/ID[/revision/REV] lists a repository. HEAD and GET /ID/resolve/REV/FILE return a small file; for a large
file they redirect to another server (the CDN), which serves ranges.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".safetensors", "tokenizer.model")  # kept in the CDN; their ETag is their SHA-256


@dataclass
class Request:
    server: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]  # lower-case names
    sent: int = 0  # bytes of the body


@dataclass
class Hub:
    """What the two servers hold, which faults they show, and the requests that they have received."""

    repo: str
    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    token: str | None = None  # if set, requests without it get 401, as for a private repository
    gated: bool = False  # with a token: the listing is public, but the files are not
    ranges: bool = True  # whether the CDN serves parts of files
    cuts: list[int] = field(default_factory=list)  # the CDN breaks the next connections after so many bytes each
    reset: bool = False  # whether it breaks them by a TCP reset instead of a plain close
    damaged: bool = False  # whether the CDN changes a byte
    claims: dict[str, int] = field(default_factory=dict)  # wrong sizes that the hub reports
    etags: dict[str, str] = field(default_factory=dict)  # wrong ETags that the hub reports
    statuses: list[int] = field(default_factory=list)  # HTTP statuses of the CDN's next responses
    stall: int | None = None  # after so many bytes the CDN sends nothing more until `released` is set
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    cdn: str = ""

    def gets(self, name: str) -> list[Request]:
        """The GET requests for a file, at the hub and at the CDN, in their order."""
        on_cdn = f"/{etag(name, self.files[name])}"
        return [r for r in self.requests if r.method == "GET" and r.path in (on_cdn, self.url(name))]

    def url(self, name: str) -> str:
        return f"/{self.repo}/resolve/{self.commit}/{name}"


def etag(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # git's hash


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FaultyHandler,), {"hub": hub, "name": name}))
        for name in ("hub", "cdn")
    ]
    # "localhost" is another name, so that the library takes the CDN for another host, as it really is.
    hub.endpoint, hub.cdn = (f"http://{n}:{s.server_port}" for n, s in zip(("127.0.0.1", "localhost"), servers))
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server, thread in zip(servers, threads):
            server.shutdown()
            thread.join()
            server.server_close()


class FaultyHandler(BaseHTTPRequestHandler):
    """Answers a request to one of the two servers, with the faults that the hub is set to."""

    hub: Hub
    name: str  # "hub" or "cdn"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_log = Request(self.name, self.command, self.path.partition("?")[0], headers)
        self.hub.requests.append(self.request_log)
        if self.name == "cdn":
            self.serve_part()
        else:
            self.serve_hub()

    def serve_hub(self) -> None:
        path = self.request_log.path
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        listing = re.fullmatch(rf"/api/models/{self.hub.repo}(?:/revision/(.+))?", path)
        file = re.fullmatch(rf"/{self.hub.repo}/resolve/([^/]+)/(.+)", path)
        found = listing or file
        if not found or (self.hub.token and not known and not self.hub.gated):
            refused = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self.answer(
                401, refused if "Authorization" in self.headers else {"X-Error-Code": "RepoNotFound"}, b"{}"
            )
        if found[1] not in (None, "main", self.hub.commit):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        if listing:
            siblings = [{"rfilename": name} for name in self.hub.files]
            body = {"id": self.hub.repo, "modelId": self.hub.repo, "sha": self.hub.commit, "siblings": siblings}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        assert file
        if self.hub.gated and not known:
            status = 403 if "Authorization" in self.headers else 401
            return self.answer(status, {"X-Error-Code": "GatedRepo"}, b"{}")
        name = file[2]
        if name not in self.hub.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        content = self.hub.files[name]
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{etag(name, content)}"'}
        if not name.endswith(LARGE):
            return self.answer(200, headers, content)
        size, tag = self.hub.claims.get(name, len(content)), self.hub.etags.get(name, etag(name, content))
        linked = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{tag}"'}
        return self.answer(302, headers | linked | {"Location": f"{self.hub.cdn}/{etag(name, content)}"}, b"")

    def serve_part(self) -> None:
        content = next(c for name, c in self.hub.files.items() if self.request_log.path == f"/{etag(name, c)}")
        if self.hub.statuses:
            return self.answer(self.hub.statuses.pop(0), {}, b"not now")
        if self.hub.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start and self.hub.ranges:
            begin = int(start[1])
            extent = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            return self.answer(206, {"Content-Range": extent}, content[begin:])
        return self.answer(200, {}, content)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.name == "cdn" and self.hub.cuts:
            body = body[: self.hub.cuts.pop(0)]
            self.close_connection = True
        if self.name == "cdn" and self.hub.stall is not None:
            self.send(body[: self.hub.stall])
            self.hub.stalled.set()
            self.hub.released.wait(300)
            self.close_connection = True
            return
        self.send(body)
        if self.close_connection and self.hub.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.wfile.flush()
        self.request_log.sent = len(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
