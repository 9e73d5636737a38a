"""`llama3 serve --ray`: start the application on a cluster, wait for a signal, and end it without cutting streams."""

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from llama3 import errors
from llama3.errors import Llama3Error, RequestError
from llama3.ray.cluster import address_of, cluster
from llama3.ray.settings import Settings, checked
from llama3.server.main import CANCEL_AFTER_SECONDS, check_host, own_names

APP = "llama3"  # its name on Ray Serve


def serve(settings: Settings, host: str, port: int, address: str | None, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM. ready: called with the number of replicas, once they can answer.

    Raises RequestError, and Llama3Error if the replicas do not start. Until they have started, a signal raises
    KeyboardInterrupt or SystemExit. The application ends in any case.
    """
    check_host(host, settings.token)
    settings = checked(replace(settings, allow_host=(*settings.allow_host, *own_names(host))))
    own_cluster = address_of(address) is None  # it ends with this program
    with cluster(address):
        from ray import serve as ray_serve

        from llama3.ray.serve import build, forbid_open_proxy

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        forbid_open_proxy(settings)
        application = build(settings)
        ray_serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        check_listener(ray_serve.context._get_global_client().http_config, host, port)
        check_free(ray_serve.status().applications)
        try:
            handle = run(ray_serve, application)
            with signals() as stopped:
                states = ray_serve.status().applications[APP].deployments["Replica"].replica_states
                ready(sum(states.values()))
                stopped.wait()
                drain(handle)
        finally:
            if not own_cluster:
                remove(ray_serve)


def check_listener(options: Any, host: str, port: int) -> None:
    """Raise RequestError if Ray Serve runs on the cluster already and listens elsewhere. It has one listener for all.

    options: those of the Ray Serve that runs.
    """
    if (options.host, options.port) != (host, port):
        raise RequestError(
            f"Ray Serve runs on this cluster already, at {options.host}:{options.port}; expected --host {options.host} "
            f"--port {options.port}, or end it first with `serve shutdown`"
        )


def check_free(applications: Any) -> None:
    """Raise RequestError if the cluster serves this application already: Ray Serve would end that one."""
    if APP in applications:
        raise RequestError(
            "this cluster runs `llama3 serve --ray` already; end that program first, or, if it was killed, "
            "all that Ray Serve runs there with `serve shutdown`"
        )


def run(ray_serve: Any, application: Any) -> Any:
    """Start the application -> the handle of its ingress. Raises Llama3Error if its replicas do not start."""
    try:
        return ray_serve.run(application, name=APP)
    except RuntimeError as error:
        deployments = ray_serve.status().applications[APP].deployments.values()
        reasons = "\n".join(deployment.message for deployment in deployments)
        raise explain(f"{error}\n{reasons}") from error


def explain(text: str) -> Llama3Error:
    """Why the application did not start, as one line: what the replicas' own error says, if it is there."""
    own = re.findall(r"(?:llama3\.errors\.|\b)(\w+Error): (.+)", text)
    kind, message = next(((kind, message) for kind, message in reversed(own) if hasattr(errors, kind)), ("", ""))
    if kind:
        found: Llama3Error = getattr(errors, kind)(message)
        return found
    return Llama3Error(f"the application did not start on Ray Serve: {' '.join(text.split())[-500:]}")


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

    def stop(**how: bool) -> int:
        """-> how many answers still run. An ingress that has died has none."""
        found = handle.broadcast("stop", **how).results(timeout_s=CANCEL_AFTER_SECONDS, return_exceptions=True)
        return sum(n for n in found if isinstance(n, int))

    until = time.monotonic() + CANCEL_AFTER_SECONDS
    while stop() and time.monotonic() < until:
        time.sleep(0.1)
    stop(now=True)


def remove(ray_serve: Any) -> None:
    """End the application, and Ray Serve with it, if it serves nothing else."""
    with suppress(TimeoutError):  # a replica that is loading its model may end later
        ray_serve.delete(APP)
    if not ray_serve.status().applications:
        ray_serve.shutdown()
