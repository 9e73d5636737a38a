"""`llama3 serve --ray`: start the application on a cluster, wait for a signal, and end it without cutting streams."""

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from llama3 import errors
from llama3.errors import Llama3Error
from llama3.ray.cluster import address_of, cluster
from llama3.ray.settings import Settings, checked
from llama3.server.main import CANCEL_AFTER_SECONDS, check_host, own_names

APP = "llama3"  # its name on Ray Serve


def serve(settings: Settings, host: str, port: int, address: str | None, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM. ready: called with the number of replicas, once they can answer.

    Raises RequestError, and Llama3Error if the replicas do not start.
    """
    check_host(host, settings.token)
    settings = checked(replace(settings, allow_host=(*settings.allow_host, *own_names(host))))
    own = address_of(address) is None
    with cluster(address), signals() as stopped:
        from ray import serve as ray_serve

        from llama3.ray.serve import build, forbid_open_proxy

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        forbid_open_proxy(settings)
        ray_serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        try:
            handle = ray_serve.run(build(settings), name=APP)
        except RuntimeError as error:
            deployments = ray_serve.status().applications[APP].deployments.values()
            reasons = "\n".join(deployment.message for deployment in deployments)
            ray_serve.delete(APP)
            raise explain(f"{error}\n{reasons}") from error
        if not stopped.is_set():
            states = ray_serve.status().applications[APP].deployments["Replica"].replica_states
            ready(sum(states.values()))
        stopped.wait()
        drain(handle)
        if not own:  # a cluster of our own ends with this program
            ray_serve.delete(APP)
            if not ray_serve.status().applications:
                ray_serve.shutdown()


@contextmanager
def signals() -> Iterator[threading.Event]:
    """Yields an event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def drain(handle: Any) -> None:
    """End all streams with a last event, and wait for the other answers, as long as the plain server does."""
    until = time.monotonic() + CANCEL_AFTER_SECONDS
    while sum(handle.broadcast("stop").results(timeout_s=CANCEL_AFTER_SECONDS)) and time.monotonic() < until:
        time.sleep(0.1)
    handle.broadcast("stop", now=True).results(timeout_s=CANCEL_AFTER_SECONDS)


def explain(text: str) -> Llama3Error:
    """Why the application did not start, as one line: what the replicas' own error says, if it is there."""
    own = re.findall(r"(?:llama3\.errors\.|\b)(\w+Error): (.+)", text)
    kind, message = next(((kind, message) for kind, message in reversed(own) if hasattr(errors, kind)), ("", ""))
    if kind:
        found: Llama3Error = getattr(errors, kind)(message)
        return found
    return Llama3Error(f"the application did not start on Ray Serve: {' '.join(text.split())[-500:]}")
