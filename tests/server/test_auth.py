"""Who may send requests: hosts, origins, CORS and the token. The routes are called without a network and a model."""

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")  # the extra `server`

from llama3.server.app import make_app
from llama3.server.names import host_name, host_of_origin, origin_of
from llama3.server.service import Service
from tests.server.asgi import RUN, Reply, call

CHAT = "/v1/chat/completions"
FRIEND = "https://friend.example:8443"
NOT_LOADED = 503  # what a request gets that passes, since there is no model


def ask(path: str, method: str = "POST", token: str | None = None, **headers: str) -> Reply:
    """The reply of a server that adds the host mine.example and the origin FRIEND."""

    async def run() -> Reply:
        service = Service(lambda: pytest.fail("not started"), 1, 1)
        app = make_app(service, token, hosts=("mine.example",), origins=(FRIEND,))
        return await call(app, path, b"{}", method, **headers)

    return asyncio.run(run())


def message(reply: Reply) -> str:
    text: str = json.loads(reply.body)["errors"][0]["message"]
    return text


GOOD_HOSTS = ["localhost:8000", "127.0.0.1", "[::1]:8000", "[0:0::1]", "LocalHost", "mine.example:80"]
BAD_HOSTS = [
    "", "evil.example", "localhost.evil.example", "[::1].evil.com", "[::1]evil.com", "[::1", "[localhost]", "::1",
    "localhost:80:80", "localhost:x", "localhost@evil.com", "evil.com@localhost", "localhost/",
    "localhost evil.com", "localhost,evil.com", "[::1]:80.evil.com", "[::ffff:127.0.0.1]", "127.1", "2130706433",
]  # fmt: skip


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_known_hosts_are_served(host: str) -> None:
    assert ask(RUN, host=host).status == NOT_LOADED


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_other_hosts_are_refused_everywhere_but_for_probes(host: str) -> None:
    for path, method in ((RUN, "POST"), ("/", "GET"), ("/metrics", "GET"), ("/run", "POST"), ("/nowhere", "GET")):
        reply = ask(path, method, host=host)
        assert reply.status == 400 and "--allow-host" in message(reply)
    assert ask("/health", "GET", host=host).json() == {"status": "loading"}


@given(st.sampled_from(["localhost", "127.0.0.1", "[::1]"]), st.text("[]:.@/\\#?% \t,;x019", max_size=6))
def test_a_host_name_is_read_by_its_grammar_and_not_by_its_beginning(host: str, rest: str) -> None:
    """Behind a name stands its port or nothing; all else makes it another name, or no name."""
    same = host_name(host + rest) == host_name(host)
    assert same == bool(re.fullmatch("(:[0-9]{0,5})?", rest))


@pytest.mark.parametrize("path", ["/run", "/ai-gateway/run"])
def test_the_bindings_host_reaches_its_routes_alone_and_never_from_a_page(path: str) -> None:
    host = "WORKERS-BINDING.ai"
    assert ask(path, host=host).status == NOT_LOADED
    assert ask(path, "GET", host=host).status == 400
    for origin in ("http://workers-binding.ai", "http://localhost", "null", ""):
        assert ask(path, host=host, origin=origin).status in (400, 403)
        assert ask(path, origin="http://workers-binding.ai").status == 403
    for other, method in ((RUN, "POST"), (CHAT, "POST"), ("/", "GET"), ("/metrics", "GET"), ("/tokenize", "POST")):
        assert ask(other, method, host=host).status == 400
    assert ask("/ai-api/models/search", "GET", host=host).status == 200  # env.AI.models()


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1", "http://[::1]:3000", FRIEND])
def test_pages_of_known_origins_are_served(origin: str) -> None:
    assert ask(RUN, origin=origin).status == NOT_LOADED


BAD_ORIGINS = [
    "https://evil.example", "null", "", "localhost", "http://localhost.evil.example", "http://[::1].evil.com",
    "http://localhost@evil.com", "http://localhost, https://evil.com", "https://friend.example", "http://localhost/x",
    FRIEND.replace("https", "http"), FRIEND + ".evil.com", "https://friend.example:84430", "://localhost",
]  # fmt: skip


@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_pages_of_other_origins_are_refused_with_what_would_add_them(origin: str) -> None:
    reply = ask(RUN, origin=origin)
    assert reply.status == 403 and "--allow-origin" in message(reply) and "--allow-host" not in message(reply)
    assert "access-control-allow-origin" not in reply.headers
    preflight = ask(RUN, "OPTIONS", origin=origin, access_control_request_method="POST")
    assert preflight.status == 403 and "--allow-origin" in message(preflight)


@pytest.mark.parametrize("path", [RUN, CHAT, "/run", "/v1/models", "/nowhere"])
def test_an_allowed_origin_gets_its_preflight_and_can_read_every_response(path: str) -> None:
    wish = {"access_control_request_method": "POST", "access_control_request_headers": "authorization, x-stainless-os"}
    preflight = ask(path, "OPTIONS", "secret", origin=FRIEND, **wish)
    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == FRIEND
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == wish["access_control_request_headers"]
    for token in (None, "secret"):  # a page must be able to read why it is refused, too
        reply = ask(path, token=token, origin=FRIEND)
        assert reply.status == 401 if token else reply.status in (NOT_LOADED, 404, 405)
        assert reply.headers["access-control-allow-origin"] == FRIEND and "Origin" in reply.headers["vary"]
    assert ask(path, "OPTIONS", origin=FRIEND, access_control_request_method="DELETE").status == 403


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("https://A.Example/", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://[0:0::1]:80", "http://[::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        *((wrong, None) for wrong in ("*", "null", "", "a.example", "https://", "https://a.example/x", "https://a b")),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(address: str, origin: str | None) -> None:
    assert origin_of(address) == origin
    if origin is not None:
        assert origin_of(origin) == origin and host_of_origin(origin) == host_of_origin(address.removesuffix("/"))


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER secret", "Bearer  secret"])
def test_the_token_opens_every_route(header: str) -> None:
    for path in (RUN, CHAT, "/run", "/tokenize"):
        assert ask(path, token="secret", authorization=header).status == NOT_LOADED


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *({"authorization": wrong} for wrong in ("", "Bearer", "Bearer ", "secret", "Basic secret", "Bearersecret")),
        *({"authorization": f"Bearer {wrong}"} for wrong in ("secre", "secret2", "SECRET", "sec ret", "secret\xe9")),
    ],
)
def test_every_route_but_health_and_the_page_needs_the_token(headers: dict[str, str]) -> None:
    for path, method in ((RUN, "POST"), ("/nowhere", "POST"), ("/metrics", "GET"), ("/ai-gateway/run", "POST")):
        reply = ask(path, method, "secret", **headers)
        error: Any = {"message": "Authentication error", "code": 10000}
        assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["errors"] == [error] and reply.json()["success"] is False
    assert ask("/health", "GET", "secret", **headers).status == NOT_LOADED
    assert ask("/", "GET", "secret", **headers).status == 200
