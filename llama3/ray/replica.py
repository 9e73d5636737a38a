"""One replica: a loaded model and the server's own application around it, called by the ingress instead of a socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message

from llama3.errors import RequestError
from llama3.llama import Llama
from llama3.ray.settings import Settings, set_limits
from llama3.server.app import make_app
from llama3.server.main import limit_malloc_arenas, load_and_freeze
from llama3.server.service import Service
from llama3.server.threads import in_new_thread

Headers = list[tuple[bytes, bytes]]
Load = Callable[[Settings], Llama]
FAILURE = b'"code":3043'  # in the last event of a stream whose step has failed
END = None  # what a replica sends after a whole answer: one that ends without it was cut off
KEPT = (b"accept", b"content-type", b"content-encoding", b"cf-consn-model-id")  # request headers that routes read


@dataclass
class Ask:
    """A request that the ingress has received whole and let pass."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    body: bytes
    keys: list[str] = field(default_factory=list)  # of `affinity.keys_of`, for the router
    avoid: list[str] = field(default_factory=list)  # replicas that have failed this request

    def scope(self) -> dict[str, Any]:
        """The request as an ASGI scope. The ingress has checked Host, Origin and token, so they stay there."""
        kept = [(name, value) for name, value in self.headers if name in KEPT]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query,
            "headers": [(b"host", b"localhost"), (b"content-length", str(len(self.body)).encode()), *kept],
            "server": ("localhost", None),
            "client": None,
            "scheme": "http",
            "root_path": "",
        }


def load_model(settings: Settings) -> Llama:
    """Load --model. Raises RequestError for one without a tokenizer."""
    llama = Llama.load(
        settings.model,
        device=settings.device,
        slots=settings.slots,
        lora=settings.lora,
        linear=settings.linear,
        activations=settings.activations,
    )
    if llama.tokenizer is None:
        raise RequestError(
            f"{llama.checkpoint.path} has no tokenizer, so it cannot read text; put tokenizer.json there"
        )
    return llama


def own_name() -> str:
    """Ray Serve's name of the replica in this process."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


class Replica:
    """The class of the deployment. Its constructor loads the model, so what Ray Serve calls running can answer."""

    def __init__(self, settings: Settings, load: Load = load_model):
        set_limits(settings)
        limit_malloc_arenas()
        self.name = own_name()
        llama = load_and_freeze(lambda: load(settings))
        self.service = Service(lambda: llama, settings.slots, settings.queue, settings.parsed_json)
        self.service.llama = llama
        self.has_failed = False  # since the last check
        self.app = make_app(self.service, quiet=settings.quiet)

    async def check_health(self) -> None:
        """Called by Ray Serve every few seconds. It replaces a replica whose check raises.

        After a failed answer, one token is generated: a GPU or a process of a tensor-parallel model may be lost. It is
        not done at other times, because the token takes a slot, with the cached prompt of a dialogue.
        """
        if self.has_failed:
            await in_new_thread(self._generate_a_token)
            self.has_failed = False

    def _generate_a_token(self) -> None:
        assert self.service.llama is not None
        self.service.llama.generate("a", max_tokens=1)

    async def answer(self, ask: Ask) -> AsyncIterator[Any]:
        """Yields this replica's name, (status, headers), the parts of the body, and END."""
        yield self.name
        messages: asyncio.Queue[Any] = asyncio.Queue()
        unread: list[Message] = [{"type": "http.request", "body": ask.body, "more_body": False}]
        gone, whole = asyncio.Event(), asyncio.Event()

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.has_failed |= message["status"] == 500
                headers = [(name, value) for name, value in message["headers"] if name != b"vary"]  # the ingress has it
                messages.put_nowait((message["status"], headers))
            elif message["type"] == "http.response.body":
                if message.get("body"):
                    self.has_failed |= FAILURE in message["body"]
                    messages.put_nowait(bytes(message["body"]))
                if not message.get("more_body"):
                    whole.set()
                    messages.put_nowait(END)

        running = asyncio.create_task(self.app(ask.scope(), receive, send))
        running.add_done_callback(lambda _: messages.put_nowait(END))
        try:
            while (message := await messages.get()) is not END:
                yield message
            if not whole.is_set():
                await running  # raises what has broken the answer off
            yield END
        finally:  # the answer is whole, or the ingress has cancelled it since its client has left
            gone.set()
            with contextlib.suppress(Exception):
                await asyncio.shield(running)

    async def metrics(self) -> tuple[str, bytes]:
        return self.name, self.service.metrics.text()
