"""Refuse a request before it reaches a route: for its Host, for its Origin, or for a missing or wrong token."""

import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llama3.server.names import host_name, host_of_origin, origin_of
from llama3.server.playground import FILES
from llama3.server.responses import error_response

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BINDING_HOST = "workers-binding.ai"  # the host name to which a Worker's AI binding sends its requests
BINDING_RUN = ("/run", "/ai-gateway/run")  # paths to which `env.AI.run` posts, without and with a gateway
BINDING_REQUESTS = (*(("POST", path) for path in BINDING_RUN), ("GET", "/ai-api/models/search"))
PROBE = "/health"
NO_TOKEN_NEEDED = (PROBE, *FILES)  # paths
WRONG_HOST, WRONG_ORIGIN, WRONG_TOKEN = 7003, 9109, 10000  # Cloudflare's error codes


class Auth:
    """ASGI middleware that lets a request pass if its Host and its Origin are known and its token is right.

    The Host is checked because the page of another site can make its own name resolve to this machine (DNS rebinding).
    The Origin is checked because a page of another site can send requests here, even though it may not read the
    responses.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: tuple[str, ...], origins: tuple[str, ...]):
        """token: None if none is needed. hosts: host names that are accepted besides this machine's own.

        origins: as `origin_of` returns them; their pages may send requests here.
        """
        self.app, self.hosts, self.origins = app, frozenset((*LOOPBACK, *hosts)), frozenset(origins)
        self.expected = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        host, origins = headers.get("host", ""), headers.getlist("origin")
        name = host_name(host)
        from_binding = name == BINDING_HOST and (scope["method"], path) in BINDING_REQUESTS and not origins
        if name not in self.hosts and not from_binding and path != PROBE:  # a probe's Host is the address it calls
            return error_response(f"the host {host[:100]!r} is not served here; --allow-host adds one", WRONG_HOST, 400)
        for origin in origins:
            if origin not in self.origins and host_of_origin(origin) not in self.hosts:
                return wrong_origin(origin)
        if self.expected is None or path in NO_TOKEN_NEEDED:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip().encode("latin-1", "replace")
        # The time that compare_digest takes does not depend on where the two differ.
        if scheme.lower() == "bearer" and hmac.compare_digest(given, self.expected):
            return None
        return error_response("Authentication error", WRONG_TOKEN, 401, headers={"www-authenticate": "Bearer"})


def wrong_origin(origin: str) -> Response:
    known = origin_of(origin)
    advice = f"--allow-origin {known} adds them" if known else "--allow-origin adds an origin such as https://a.example"
    return error_response(f"pages of {origin[:100]!r} are not served here; {advice}", WRONG_ORIGIN, 403)
