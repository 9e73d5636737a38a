"""Starts the other ranks as processes, notices when one dies, and ends them.

They are started by name, as `python -m llama3.tensor_parallel.rank`, and not as copies of this process. So the caller's
main module is not imported again: a script needs no main guard, and a notebook or standard input will do as well. What
a rank needs comes over its socket. A rank ends when that socket is closed, so none outlives rank 0.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet, finalize, ref

from llama3.errors import DeviceError
from llama3.tensor_parallel.channel import READY, SETUP, Channel, Closed, RankError, RankGone

T = TypeVar("T")
PATIENCE = 5  # seconds for a rank to end by itself


@dataclass(frozen=True)
class Setup:
    """The first message to a rank."""

    kind: str  # "cpu" or "cuda"
    rank: int
    ranks: int
    folder: str  # of the checkpoint, absolute
    model: dict[str, Any]  # what else the rank's model is made from
    memory: int  # the file descriptor of the shared memory, or -1


class Ranks:
    """The processes of the ranks from 1 on."""

    def __init__(self, device: str, setups: list[Setup], threads: int):
        """threads: how many the BLAS of each rank may use. Raises DeviceError."""
        self.device = device
        self.processes: list[subprocess.Popen[bytes]] = []
        self.channels: list[Channel] = []
        self.error: RankError | None = None  # once a rank has failed: why
        self._failing = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "llama3-ranks")
        self.stop = finalize(self, _stop, self.processes, self.channels, os.getpid())
        try:
            for setup in setups:
                self._start(setup, threads)
        except OSError as error:
            self.stop()
            raise DeviceError(f"device {device}: no process can be started: {error}") from error
        except BaseException:
            self.stop()
            raise
        _all.add(self)

    def _start(self, setup: Setup, threads: int) -> None:
        if os.name != "posix" or not sys.executable:
            raise DeviceError(f"device {self.device} needs Linux or macOS, and a Python program to start; use cpu")
        mine, theirs = socket.socketpair()
        self.channels.append(Channel(mine))
        with theirs:
            files = [theirs.fileno(), *([setup.memory] if setup.memory >= 0 else [])]
            root = str(Path(__file__).resolve().parents[2])  # of this llama3, wherever the caller has it from
            env = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
            env |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
            command = [sys.executable, "-P", "-m", "llama3.tensor_parallel.rank", str(theirs.fileno())]
            # A session of its own: Ctrl-C reaches rank 0 alone, which ends the step in all of them.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, pass_fds=files,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        with suppress(Closed):  # `wait_until_ready` says why
            self.channels[-1].send(SETUP, pickle.dumps(setup))

    def wait_until_ready(self) -> None:
        """Wait until each rank has its weights. Raises RankError with what one of them reports."""
        for rank, channel in enumerate(self.channels, 1):
            try:
                kind, payload = channel.receive()
            except Closed:
                raise self.failed(RankGone(rank)) from None
            if kind != READY:
                raise self.failed(RankError(f"rank {rank}: {payload.decode()}"))

    def run(self, work: Callable[[], T], interrupt: Callable[[], None]) -> T:
        """Call `work` in a thread of its own, where Ctrl-C cannot cut a message in two.

        interrupt: called if Ctrl-C comes meanwhile; it makes `work` end soon. Raises RankError if a rank has failed.
        """
        if self.error:
            raise self.error
        try:
            future = self._thread.submit(work)
            wait([future])
        except BaseException:
            interrupt()
            self._thread.submit(int).result()  # `work` has ended: the thread takes one call after the other
            raise
        return future.result()

    def watch(self, on_end: Callable[[], None]) -> None:
        """From now on the ranks have nothing to say: notice it in threads if one does, or ends, and call `on_end`."""
        for rank in range(1, len(self.channels) + 1):
            args = ref(self), rank, self.channels[rank - 1], on_end
            threading.Thread(target=_watch, args=args, name="llama3-ranks-watch", daemon=True).start()

    def failed(self, error: Exception, on_end: Callable[[], None] = lambda: None) -> RankError:
        """End all ranks -> the error to raise, now and at every later step. It says how the first rank ended."""
        with self._failing:
            self._fail(error, on_end)
        assert self.error
        return self.error

    def _fail(self, error: Exception, on_end: Callable[[], None]) -> None:
        if self.error is None:
            endings = [f"rank {i} {how}" for i, p in enumerate(self.processes, 1) if (how := _ending(p))]
            what = "; ".join(endings[:1]) if isinstance(error, RankGone) and endings else str(error)
            self.error = RankError(f"device {self.device}: {what}; load the model again")
            for process in self.processes:
                process.kill()
            on_end()
            self.stop()


def _watch(weak: "ref[Ranks]", rank: int, channel: Channel, on_end: Callable[[], None]) -> None:
    try:
        _, payload = channel.receive()
        error = RankError(f"rank {rank}: {payload.decode()}")
    except Closed:
        error = RankGone(rank)
    ranks = weak()
    if ranks is not None and ranks.stop.alive:  # else rank 0 has closed the channel, because the model is freed
        ranks.failed(error, on_end)


def _ending(process: "subprocess.Popen[bytes]") -> str | None:
    """How a process has ended; None if it runs."""
    try:
        code = process.wait(0.2)
    except subprocess.TimeoutExpired:
        return None
    if code >= 0:
        return f"(process {process.pid}) ended with exit code {code}"
    return f"(process {process.pid}) was killed by {signal.Signals(-code).name}"


def _stop(processes: "list[subprocess.Popen[bytes]]", channels: list[Channel], owner: int) -> None:
    if os.getpid() != owner:  # a fork of rank 0, which must not end the ranks
        for channel in channels:
            channel.close()
        return
    for channel in channels:
        channel.end()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_all: WeakSet[Ranks] = WeakSet()


def _after_fork() -> None:
    """A forked child closes its copies of the sockets: else the ranks would not notice the end of rank 0."""
    for ranks in list(_all):
        ranks.stop()
        ranks.error = RankError(f"the model on {ranks.device} was loaded before a fork; load it in the new process")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
