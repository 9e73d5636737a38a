"""Refuse a request before it reaches a route: for its Host, for its Origin, or for a missing or wrong token."""

import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llama3.server.playground import FILES
from llama3.server.responses import error_response

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BINDING_HOST = "workers-binding.ai"  # the host name to which a Worker's AI binding sends its requests
NO_TOKEN_NEEDED = ("/health", *FILES)  # paths
WRONG_HOST, WRONG_ORIGIN, WRONG_TOKEN = 7003, 9109, 10000  # Cloudflare's error codes


class Auth:
    """ASGI middleware that lets a request pass if its Host and its Origin are known and its token is right.

    The Host is checked because the page of another site can make its own name resolve to this machine (DNS rebinding).
    The Origin is checked because a page of another site can send requests here, even though it may not read the
    responses.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: tuple[str, ...]):
        """token: None if none is needed. hosts: host names that are accepted besides this machine's own."""
        self.app, self.hosts = app, frozenset((*LOOPBACK, BINDING_HOST, *hosts))
        self.expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        name = host_name(headers.get("host", ""))
        if name not in self.hosts:
            return error_response(f"the host {name[:100]!r} is not served here; --allow-host adds one", WRONG_HOST, 400)
        origin = headers.get("origin")
        if origin is not None and host_name(origin.partition("://")[2]) not in self.hosts:
            message = f"pages of {origin[:100]!r} are not served here; --allow-host adds one"
            return error_response(message, WRONG_ORIGIN, 403)
        if self.expected is None or scope["path"] in NO_TOKEN_NEEDED:
            return None
        authorization = headers.get("authorization", "").encode("latin-1", "replace")
        if hmac.compare_digest(authorization, self.expected):  # its time does not depend on where the two differ
            return None
        return error_response("Authentication error", WRONG_TOKEN, 401, headers={"www-authenticate": "Bearer"})


def host_name(header: str) -> str:
    """The host name without its port, in lower case: "[::1]:8000" -> "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
