"""The process: uvicorn with its limits, and an end on SIGTERM that lets running answers say that they end."""

from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from llama3.errors import RequestError
from llama3.server.app import Service, make_app
from llama3.server.deadline import DeadlineProtocol
from llama3.server.gate import LOOPBACK

if TYPE_CHECKING:
    from llama3.llama import Llama

MAX_HEADER = 16 * 1024  # bytes of all headers
GRACE_SECONDS = 30


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service
        service.on_error = lambda: setattr(self, "should_exit", True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)


def serve(
    load: "Callable[[], Llama]",
    host: str,
    port: int,
    token: str | None,
    slots: int,
    queue: int,
    hosts: tuple[str, ...] = (),
    quiet: bool = False,
) -> None:
    """Until a signal ends it. Raises what loading the model has raised, and RequestError for an open door."""
    if not token and host not in LOOPBACK:
        raise RequestError(
            f"--host {host} can be reached from elsewhere: set --token (or LLAMA3_TOKEN), or leave it out"
        )
    service = Service(load, slots, queue)
    hosts = (*hosts, *(() if host in ("0.0.0.0", "::") else (host,)))
    config = uvicorn.Config(
        make_app(service, token, hosts, quiet),
        host=host,
        port=port,
        http=DeadlineProtocol,
        h11_max_incomplete_event_size=MAX_HEADER,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        access_log=False,
    )
    Server(config, service).run()
    if service.error is not None:
        raise service.error
