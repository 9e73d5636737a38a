"""Requests shared out among replicas of the model. A replica that is lost is started again, and so are its requests."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llama3.batch import IN_FLIGHT, in_order
from llama3.batch_request import Line, failure_line
from llama3.errors import Llama3Error, RequestError
from llama3.json_text import encode_json, read_json
from llama3.llama import Llama
from llama3.ray.actors import start
from llama3.ray.cluster import cluster, import_ray
from llama3.ray.placement import Placement, place
from llama3.request import at_least_1

TRIES = 3  # of a request whose replicas are lost, and of a replica that is lost while it loads the model


def batch(
    requests: Iterable[Any],
    model: str | Path | None = None,
    device: str = "auto",
    slots: int = 4,
    lora: Mapping[str, str | Path] | None = None,
    linear: str | None = None,
    activations: str = "float32",
    *,
    replicas: int | None = None,
    address: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer many requests on a Ray cluster -> their answers, in order, as `Llama.batch` gives them.

    model, device, slots, lora, linear, activations: as for `Llama.load`, on each machine of the cluster; its folders
    must be there. A request is JSON: an object in one of the two forms of docs/batch.md. replicas: how many copies of
    the model; by default, one for each GPU, or else for each machine. address: HOST:PORT of the cluster's head; None:
    what RAY_ADDRESS says, or the cluster that runs on this machine, or a new one of this machine alone. Needs the extra
    `ray`. Raises RequestError for a request that JSON cannot hold, and if there is no such cluster or it has too few
    GPUs, and Llama3Error if a machine cannot load the model. Close the iterator to end early.
    """
    load = loader(model, lora, linear=linear, activations=activations)
    with cluster(address), closing(Replicas(load, place(device, replicas), slots)) as copies:
        for line in in_order(encoded(requests), copies.answer_line, copies.slots, copies.close):
            yield read_json(line.text.decode())


def encoded(requests: Iterable[Any]) -> Iterator[bytes]:
    """Each request as a line of JSON. Raises RequestError for one that JSON cannot hold."""
    for n, request in enumerate(requests, 1):
        try:
            line = encode_json(request)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"request {n} is not JSON: {error}; expected an object of docs/batch.md") from None
        yield line


def loader(
    model: str | Path | None, lora: Mapping[str, str | Path] | None = None, **options: Any
) -> Callable[[str, int], Llama]:
    """A function of device and slots that loads the model, in any process. Folders that are here get their full path.

    options: further ones of `Llama.load`.
    """
    folders = {name: full_path(folder) for name, folder in (lora or {}).items()}
    return partial(load_model, full_path(model), folders, options)


def load_model(
    model: str | Path | None, lora: dict[str, Any], options: dict[str, Any], device: str, slots: int
) -> Llama:
    return Llama.load(model, device, slots, lora=lora, **options)


def full_path(folder: str | Path | None) -> str | Path | None:
    """The same folder for a process with another working directory. A name on the hub stays as it is."""
    return Path(folder).absolute() if folder is not None and Path(folder).exists() else folder


@dataclass(eq=False)
class Handle:
    """What this process knows of one replica."""

    actor: Any
    ready: bool = False  # the model is loaded
    running: int = 0  # requests in flight
    kept_free: bool = False  # for a request that must run alone


class Replicas:
    """Copies of the model, each in an actor. Answers requests from any number of threads, as `Answerer` does."""

    def __init__(self, load: Callable[[str, int], Llama], placement: Placement, slots: int):
        """Start the actors; the program is connected to a cluster. load: a function as `loader` makes it.

        Raises RequestError for slots below 1.
        """
        self.placement, self.slots_each = placement, at_least_1("slots", slots)
        self.slots = slots * placement.replicas
        self.load = partial(load, placement.device, slots)
        self.loaded: tuple[Path, str] | None = None  # folder and device of the first one that was ready
        self.error: Exception | None = None  # why the batch cannot go on
        self.closed = False
        self.changed = threading.Condition()  # of all of the above, and the handles
        self.handles: list[Handle] = []
        for _ in range(placement.replicas):
            self._start()

    def wait(self) -> tuple[Path, str]:
        """Wait until a replica has loaded the model -> (its folder, its device). Raises what its loading raised."""
        with self.changed:
            self.changed.wait_for(lambda: self.loaded or self.error)
            if self.loaded is None:
                assert self.error
                raise self.error
            return self.loaded

    def answer_line(self, text: bytes) -> Line:
        """The answer to a request that is a line of JSON. Waits until a replica has room for it.

        If the replica is lost, another one answers, or its successor. The last try is made alone, so that a request is
        given up only if it was its own replica that was lost. Raises RequestError after `close`.
        """
        ray = import_ray()
        for n in range(1, TRIES + 1):
            with self._room(alone=n == TRIES) as handle:
                try:
                    return ray.get(handle.actor.answer_line.remote(text))
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError:
                    self._replace(handle)
        return failure_line(text, f"the process that computed this answer was lost, {TRIES} times in a row")

    def close(self) -> None:
        """End all replicas, and with them the requests that are running."""
        with self.changed:
            self.closed = True
            handles, self.handles = self.handles, []
            self.changed.notify_all()
        for handle in handles:
            import_ray().kill(handle.actor)

    @contextmanager
    def _room(self, alone: bool) -> Iterator[Handle]:
        """A replica that has room for one more request. alone: no other request runs there."""
        with self.changed:
            handle = self._wait_for_room(alone)
            handle.running += 1
        try:
            yield handle
        finally:
            with self.changed:
                handle.running -= 1
                handle.kept_free = handle.kept_free and not alone
                self.changed.notify_all()

    def _wait_for_room(self, alone: bool) -> Handle:
        kept: Handle | None = None
        while True:
            if self.error:
                raise self.error
            if self.closed:
                raise RequestError("the batch was stopped")
            open_ones = [handle for handle in self.handles if handle.ready and not handle.kept_free]
            if alone:
                if kept not in self.handles and open_ones:  # none is chosen yet, or it was lost in the meantime
                    kept = min(open_ones, key=lambda handle: handle.running)
                    kept.kept_free = True
                if kept in self.handles and not kept.running:
                    return kept
            else:
                with_room = [handle for handle in open_ones if handle.running < IN_FLIGHT * self.slots_each]
                if with_room:
                    return min(with_room, key=lambda handle: handle.running)
            self.changed.wait()

    def _start(self, n: int = 1) -> None:
        """Start an actor, and load the model there for the nth time. The model is ready later."""
        handle = Handle(start(self.placement, self.slots_each))
        self.handles.append(handle)
        threading.Thread(target=self._load, args=(handle, n), name="llama3-ray-load", daemon=True).start()

    def _load(self, handle: Handle, n: int) -> None:
        ray = import_ray()
        try:
            loaded = ray.get(handle.actor.load.remote(self.load))
        except ray.exceptions.RayTaskError as error:
            self._fail(error.cause)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            if getattr(error, "actor_init_failed", False):
                self._fail(Llama3Error(f"a machine of the cluster cannot run this version of llama3: {reason}"))
            elif n == TRIES:
                self._fail(Llama3Error(f"a replica was lost {TRIES} times while it loaded the model: {reason}"))
            else:
                self._replace(handle, n + 1)
        except Exception as error:  # raised in the thread that waits for the replica
            self._fail(error)
        else:
            with self.changed:
                handle.ready, self.loaded = True, self.loaded or loaded
                self.changed.notify_all()

    def _replace(self, handle: Handle, n: int = 1) -> None:
        """Start another actor in place of one that is lost. Called by each of its requests; the first one does it."""
        with self.changed:
            if self.closed or handle not in self.handles:
                return
            self.handles.remove(handle)
            self._start(n)
            self.changed.notify_all()
        import_ray().kill(handle.actor)  # only the connection to it may be lost

    def _fail(self, error: Exception) -> None:
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()
