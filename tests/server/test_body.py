"""Request bodies: how they are decoded, and how their memory is bounded while they arrive."""

import asyncio
import contextlib
import gc
import gzip
import json
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")  # the extra `server`

from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.server.body import BodyReader

JSON = b'{"prompt": "\xc3\xa9\xf0\x9f\x98\x80", "max_tokens": 3}'


class Arriving:
    """A request with these parts of a body; it waits for `may_end` before its end, if that is given."""

    def __init__(self, *parts: bytes, encoding: str | None = None, may_end: asyncio.Event | None = None):
        self.parts, self.may_end = parts, may_end
        self.headers = {} if encoding is None else {"content-encoding": encoding}

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        if self.may_end:
            await self.may_end.wait()


def read(*parts: bytes, encoding: str | None = None) -> Any:
    request: Any = Arriving(*parts, encoding=encoding)
    return asyncio.run(BodyReader().read(request))


def refusal(*parts: bytes, encoding: str | None = None) -> tuple[int, int, str]:
    with pytest.raises(ContractError) as caught:
        read(*parts, encoding=encoding)
    return caught.value.status, caught.value.code, str(caught.value)


@given(st.integers(0, len(JSON)), st.sampled_from([None, "identity", "gzip", "GZIP", "x-gzip"]), st.booleans())
def test_a_body_means_the_same_in_every_form_that_clients_send(at: int, encoding: str | None, mark: bool) -> None:
    sent = (b"\xef\xbb\xbf" if mark else b"") + JSON
    sent = gzip.compress(sent) if encoding and "zip" in encoding.lower() else sent
    assert read(sent[:at], sent[at:], encoding=encoding) == json.loads(JSON)


def test_what_gzip_hides_counts_for_the_limit() -> None:
    largest = b'"' + b"x" * (LIMITS.body_bytes - 2) + b'"'
    assert len(read(gzip.compress(largest), encoding="gzip")) == LIMITS.body_bytes - 2
    for hidden in (LIMITS.body_bytes + 1, 200 * LIMITS.body_bytes):
        status, code, text = refusal(gzip.compress(b" " * hidden), encoding="gzip")
        assert (status, code) == (413, 3006) and "too large" in text


@given(st.binary(max_size=60), st.integers(0, len(gzip.compress(JSON)) - 1))
def test_a_damaged_gzip_body_is_refused(noise: bytes, at: int) -> None:
    whole = gzip.compress(JSON)
    for body in (b"\x1f\x8b" + noise, whole[:at], whole + b"x" + noise):
        if body:
            status, code, _ = refusal(body, encoding="gzip")
            assert (status, code) == (400, 5006)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x" * 5000])
def test_another_encoding_is_refused_with_what_to_send(encoding: str) -> None:
    status, code, text = refusal(JSON, encoding=encoding)
    assert (status, code) == (415, 5006) and "send gzip" in text and len(text) < 300


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"\x1f\x8b{}"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body)[:2] == (400, 5006) and "not JSON" in refusal(body)[2]


def test_bodies_that_are_still_arriving_are_limited_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each body may have one megabyte, and all that have not arrived completely may have 64 together."""
    monkeypatch.setattr("llama3.server.body.MAX_BYTES_ARRIVING", 1000)

    async def run() -> None:
        bodies, may_end = BodyReader(), asyncio.Event()
        slow: Callable[[], Any] = lambda: Arriving(b"x" * 900, may_end=may_end)  # noqa: E731
        first = asyncio.create_task(bodies.read(slow()))
        await asyncio.sleep(0)
        with pytest.raises(ContractError) as caught:
            await bodies.read(slow())
        assert caught.value.status == 429
        may_end.set()
        with pytest.raises(ContractError, match="not JSON"):
            await first
        assert bodies.bytes_arriving == 0

    asyncio.run(run())


def test_a_refused_body_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that was raised refers to the frames it passed through, and through them to the body."""
    monkeypatch.setattr("llama3.server.body.MAX_BYTES_ARRIVING", 10)

    async def run() -> Any:
        request: Any = Arriving(b"x" * 900)
        with contextlib.suppress(ContractError):
            await BodyReader().read(request)
        return weakref.ref(request)

    refused = asyncio.run(run())
    gc.collect()
    assert refused() is None
