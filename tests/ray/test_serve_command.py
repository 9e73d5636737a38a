"""`llama3 serve --ray` starts and ends the application, whatever happens. Ray is replaced, so it is not needed."""

import contextlib
import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from llama3.errors import CheckpointError, Llama3Error, RequestError
from llama3.ray import serve_command
from llama3.ray.serve_command import APP, drain, serve
from llama3.ray.settings import Settings


class Handle:
    """The handle of two ingresses. Each has an answer that runs until it is told to stop a second time."""

    def __init__(self) -> None:
        self.running, self.calls = [1, 1], list[dict[str, bool]]()
        self.dead: Exception | None = None  # of a third ingress

    def broadcast(self, method: str, **how: bool) -> "Handle":
        assert method == "stop"
        self.calls.append(how)
        return self

    def results(self, timeout_s: float, return_exceptions: bool = False) -> list[Any]:
        if self.dead is not None and not return_exceptions:
            raise self.dead
        found = [*self.running, *([self.dead] if self.dead else [])]
        self.running = [0, 0]
        return found


class RayServe:
    """Stands for `ray.serve` on a cluster of others, where another application may run."""

    def __init__(self, on_run: Callable[[], None] = lambda: None):
        self.on_run, self.handle = on_run, Handle()
        self.options: Any = None  # of Ray Serve, once it runs
        self.running: set[str] = set()  # applications
        self.message = ""  # what a replica says that has not started
        self.context = SimpleNamespace(_get_global_client=lambda: SimpleNamespace(http_config=self.options))

    def start(self, http_options: dict[str, Any], logging_config: Any) -> None:
        self.options = self.options or SimpleNamespace(**http_options)

    def run(self, application: Any, name: str) -> Handle:
        self.running.add(name)
        self.on_run()
        return self.handle

    def status(self) -> Any:
        replica = SimpleNamespace(replica_states={"RUNNING": 2}, message=self.message)
        return SimpleNamespace(
            applications={name: SimpleNamespace(deployments={"Replica": replica}) for name in self.running}
        )

    def delete(self, name: str) -> None:
        self.running.discard(name)

    def shutdown(self) -> None:
        assert not self.running
        self.options = None


def start(
    ray_serve: RayServe,
    patch: pytest.MonkeyPatch,
    ready: Callable[[int], Any] = lambda replicas: None,
    build: Callable[[Settings], Any] = lambda settings: "app",
) -> None:
    """Serve on a cluster that others have started."""
    application = SimpleNamespace(build=build, forbid_open_proxy=lambda settings: None)
    patch.setitem(sys.modules, "ray", SimpleNamespace(serve=ray_serve))
    patch.setitem(sys.modules, "llama3.ray.serve", application)
    patch.setattr(serve_command, "address_of", lambda address: address)
    patch.setattr(serve_command, "cluster", lambda address: contextlib.nullcontext())
    serve(Settings(), "127.0.0.1", 8000, "10.0.0.1:6379", ready)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_ends_what_was_started(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_serve, told = RayServe(), list[int]()

    def ready(replicas: int) -> None:
        told.append(replicas)
        signal.raise_signal(number)

    start(ray_serve, monkeypatch, ready)
    assert told == [2] and ray_serve.handle.calls == [{}, {}, {"now": True}]
    assert not ray_serve.running and ray_serve.options is None


def test_another_application_on_the_cluster_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_serve = RayServe()
    ray_serve.running.add("other")
    ray_serve.options = SimpleNamespace(host="127.0.0.1", port=8000)
    start(ray_serve, monkeypatch, lambda replicas: signal.raise_signal(signal.SIGINT))
    assert ray_serve.running == {"other"} and ray_serve.options


def test_the_same_application_on_the_cluster_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_serve = RayServe()
    ray_serve.running.add(APP)
    ray_serve.options = SimpleNamespace(host="127.0.0.1", port=8000)
    with pytest.raises(RequestError, match="runs `llama3 serve --ray` already"):
        start(ray_serve, monkeypatch)
    assert ray_serve.running == {APP} and ray_serve.options


def test_ctrl_c_while_the_replicas_start_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for a replica, Ray Serve waits for ever."""
    ray_serve = RayServe(on_run=lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(ray_serve, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not ray_serve.running and ray_serve.options is None


def test_replicas_that_do_not_start_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Deploying application llama3 failed")

    ray_serve = RayServe(on_run=fail)
    ray_serve.message = "Traceback:\n  ...\nllama3.errors.CheckpointError: /nowhere: no such folder\n"
    with pytest.raises(CheckpointError, match=r"^/nowhere: no such folder$"):
        start(ray_serve, monkeypatch)
    assert not ray_serve.running and ray_serve.options is None
    ray_serve.message = "Traceback:\n  ...\nOSError: broken\n"
    with pytest.raises(Llama3Error, match=r"^the application did not start on Ray Serve: .* OSError: broken$"):
        start(ray_serve, monkeypatch)


def test_a_cluster_without_the_gpus_is_refused_before_ray_serve_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(settings: Settings) -> Any:
        raise RequestError("no machine of the Ray cluster has a GPU")

    ray_serve = RayServe()
    with pytest.raises(RequestError, match="no machine of the Ray cluster has a GPU"):
        start(ray_serve, monkeypatch, build=build)
    assert ray_serve.options is None


def test_a_ray_serve_that_listens_elsewhere_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its own listener, which may be open to all, and the address that is shown would be wrong."""
    ray_serve = RayServe()
    ray_serve.running.add("other")
    ray_serve.options = SimpleNamespace(host="0.0.0.0", port=9000)
    with pytest.raises(RequestError, match=r"^Ray Serve runs on this cluster already, at 0\.0\.0\.0:9000; expected "):
        start(ray_serve, monkeypatch)
    assert APP not in ray_serve.running and ray_serve.options.port == 9000


def test_an_ingress_that_has_died_does_not_keep_the_others_from_stopping() -> None:
    handle = Handle()
    handle.dead = RuntimeError("the actor died")
    drain(handle)
    assert handle.calls == [{}, {}, {"now": True}]
