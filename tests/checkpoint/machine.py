"""Runs each download in a new process with its own home folder, because huggingface_hub reads its settings only once.

The processes are forked from one that has already imported the slow libraries, which saves most of a second for each.
"""

import contextlib
import itertools
import multiprocessing
import os
import shutil
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from llama3.checkpoint import download, resolve
from llama3.errors import Llama3Error
from tests.checkpoint.hub_server import Hub

REPO = "meta-llama/Tiny-Llama-3"
FILE_EVENTS = {  # audit events of Python that change the file system
    "open",
    "os.mkdir",
    "os.rename",
    "os.rmdir",
    "os.remove",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.move",
}
Call = list[str | None]  # "download" or "resolve", and its arguments
CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["__main__", __name__, "httpx2", "filelock", "yaml", "tqdm.auto"])


class Machine:
    """A home folder and the hub that it uses."""

    def __init__(self, hub: Hub, home: Path):
        self.hub, self.home = hub, home

    def start(self, *calls: Call, **environment: str) -> tuple[BaseProcess, Connection]:
        return self.start_function(make_calls, calls, **environment)

    def start_function(self, function: Any, *arguments: Any, **environment: str) -> tuple[BaseProcess, Connection]:
        settings = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.endpoint, "NO_PROXY": "*"}
        # No test is about these timeouts, and a busy machine may respond slowly.
        settings |= {"HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=function, args=(settings | environment, *arguments, theirs))
        process.start()
        theirs.close()
        return process, ours

    def run(self, *calls: Call, **environment: str) -> list[Path]:
        """Make the calls in one process. Returns their results."""
        process, results = self.start(*calls, **environment)
        assert results.poll(180)
        outcome = results.recv()
        process.join()
        assert not isinstance(outcome, str), outcome
        return list(outcome)

    def fail(self, *calls: Call, **environment: str) -> str:
        """Make the calls in one process, which must raise DownloadError. Returns its message."""
        process, results = self.start(*calls, **environment)
        assert results.poll(180)
        outcome = results.recv()
        process.join()
        assert isinstance(outcome, str), outcome
        name, _, message = outcome.partition(": ")
        assert name == "DownloadError", outcome
        return message


def make_calls(environment: dict[str, str], calls: list[Call], results: Connection) -> None:
    set_environment(environment)
    functions: dict[str | None, Any] = {"download": download, "resolve": resolve}
    try:
        results.send([functions[name](*arguments) for name, *arguments in calls])
    except Llama3Error as error:
        results.send(f"{type(error).__name__}: {error}")


def set_environment(environment: dict[str, str]) -> None:
    assert "huggingface_hub" not in sys.modules
    for name in list(os.environ):
        if name.startswith("HF_"):
            del os.environ[name]
    os.environ |= environment


class Interrupted(NamedTuple):
    event: str  # the file event before which Ctrl-C came
    found: dict[str, bytes] | None  # the files that then counted as the model, None if there were none
    repaired: dict[str, bytes]  # the files that the next download returned


def interrupt_everywhere(
    environment: dict[str, str], to: Path | None, before: Path | None, results: Connection
) -> None:
    """Downloads with a Ctrl-C before the first file event, before the ninth and so on, until one is not interrupted.

    Each begins with an empty home, or with a copy of `before`. Call it in a process of its own, because an audit hook
    cannot be removed.
    """
    set_environment(environment)
    from llama3.checkpoint.transfer import cached

    home, countdown, interrupted_before, outcomes = Path(environment["HF_HOME"]), 0, "", []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal countdown, interrupted_before
        if countdown and event in FILE_EVENTS and any(str(home.parent) in str(argument) for argument in arguments):
            countdown -= 1
            if not countdown:
                interrupted_before = f"{event} {arguments}"
                raise KeyboardInterrupt

    sys.addaudithook(hook)
    for n in itertools.count(1, 8):
        for folder in (home, to, to and to.with_name(to.name + ".partial")):
            shutil.rmtree(folder or "", ignore_errors=True)
        if before:
            shutil.copytree(before, home, symlinks=True)
        countdown = n
        with contextlib.suppress(KeyboardInterrupt):
            download(REPO, to)
        if countdown:
            break
        found = cached(REPO) if to is None else to if to.exists() else None
        left = found and contents(found)  # read before the next download, which may change it
        outcomes.append(Interrupted(interrupted_before, left, contents(download(REPO, to))))
    results.send(outcomes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
