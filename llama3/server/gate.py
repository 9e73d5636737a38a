"""Before any route: is this host meant, does no other site's page ask, is the token right?"""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llama3.server.answers import refusal
from llama3.server.playground import FILES

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BINDING_HOST = "workers-binding.ai"  # what a Worker's AI binding calls its other end
OPEN = ("/health", *FILES)  # without a token


class Gate:
    """Host names are checked since a page elsewhere can have its own name resolve to this machine (DNS rebinding), and
    origins since it can send requests here whose answers it may not read.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: tuple[str, ...]):
        self.app, self.hosts = app, frozenset((*LOOPBACK, BINDING_HOST, *hosts))
        self.expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            name = host_name(headers.get("host", ""))
            if name not in self.hosts:
                answer = refusal(f"the host {name[:100]!r} is not served here; --allow-host adds one", 7003, 400)
                return await answer(scope, receive, send)
            origin = headers.get("origin")
            if origin is not None and host_name(origin.partition("://")[2]) not in self.hosts:
                answer = refusal(f"pages of {origin[:100]!r} are not served here; --allow-host adds one", 9109, 403)
                return await answer(scope, receive, send)
            given = headers.get("authorization", "").encode("latin-1", "replace")
            if self.expected and scope["path"] not in OPEN and not hmac.compare_digest(given, self.expected):
                answer = refusal("Authentication error", 10000, 401, headers={"www-authenticate": "Bearer"})
                return await answer(scope, receive, send)
        await self.app(scope, receive, send)


def host_name(header: str) -> str:
    """ "[::1]:8000" -> "::1" """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
