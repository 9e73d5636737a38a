"""Several emulated GPUs in threads: all that processes would run, with a barrier in place of NCCL's library."""

import contextlib
import ctypes
import pickle
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama3.checkpoint import load_folder
from llama3.cuda import device as device_module
from llama3.model.lora import Adapter
from llama3.tensor_parallel import gpu, rank
from llama3.tensor_parallel.channel import SETUP, Channel, Closed
from llama3.tensor_parallel.ranks import Ranks, Setup
from tests.cuda.emulator.device import STREAM, EmulatedDevice

ONE_AT_A_TIME = threading.RLock()  # the emulator runs one kernel at a time


class Gpu(EmulatedDevice):
    """An emulated GPU among others in one process. It counts the bytes that are uploaded to it."""

    uploaded = 0

    def _run(self, launch: Any) -> None:
        with ONE_AT_A_TIME:
            super()._run(launch)

    def upload(self, array: np.ndarray, into: Any = None) -> Any:
        self.uploaded += array.nbytes
        return super().upload(array, into)


class FakeNccl:
    """libnccl. A collective call waits for all ranks, and adds up in their order."""

    def __init__(self, ranks: int):
        self.ranks, self.barrier = ranks, threading.Barrier(ranks)
        self.parts: list[np.ndarray] = [np.empty(0)] * ranks
        self.sums: list[list[bytes]] = [[] for _ in range(ranks)]  # of each rank: what each of its sums became

    def ncclGetUniqueId(self, made: Any) -> int:
        made._obj.internal[:] = [7] * 128
        return 0

    def ncclCommInitRank(self, comm: Any, ranks: int, id: Any, rank: int) -> int:
        assert ranks == self.ranks and list(id.internal) == [7] * 128
        comm._obj.value = 1 + rank
        self.barrier.wait(60)
        return 0

    def ncclAllReduce(
        self, source: int, target: int, size: int, dtype: int, operation: int, comm: Any, stream: int
    ) -> int:
        assert (source, dtype, operation, stream) == (target, 7, 0, STREAM)
        x = at(source, size, np.float32)
        total, *others = self._exchange(comm, x)
        for part in others:
            total = total + part
        x[...] = total
        self.sums[comm.value - 1].append(total.tobytes())
        return 0

    def ncclBroadcast(self, source: int, target: int, size: int, dtype: int, root: int, comm: Any, stream: int) -> int:
        assert (source, dtype, root, stream) == (target, 2, 0, STREAM)
        x = at(source, size, np.int32)
        x[...] = self._exchange(comm, x)[0]
        return 0

    def ncclCommAbort(self, comm: Any) -> int:
        self.barrier.abort()
        return 0

    def _exchange(self, comm: Any, x: np.ndarray) -> list[np.ndarray]:
        self.parts[comm.value - 1] = x.copy()
        self.barrier.wait(60)
        parts = list(self.parts)
        self.barrier.wait(60)
        return parts


def at(address: int, size: int, dtype: type) -> np.ndarray:
    return np.frombuffer((ctypes.c_byte * (4 * size)).from_address(address), dtype)


def gpus(folder: Path, ranks: int, adapters: Mapping[str, Adapter] | None = None, slots: int = 2) -> Any:
    """Rank 0's model, from `load_model`. Its attributes `gpus` and `nccl` are for tests."""
    devices, library = [Gpu() for _ in range(ranks)], FakeNccl(ranks)

    def start(self: Ranks, setup: Setup, threads: int) -> None:
        mine, theirs = socket.socketpair()
        self.channels.append(Channel(mine))
        threading.Thread(target=run_rank, args=(Channel(theirs),), daemon=True).start()
        self.channels[-1].send(SETUP, pickle.dumps(setup))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(device_module.BACKENDS, "cuda", lambda index: devices[index])
        patch.setattr(gpu, "load_library", lambda: library)
        patch.setattr(rank, "ReadAhead", lambda channel: channel)  # it would end this process
        patch.setattr(Ranks, "_start", start)
        model: Any = gpu.load_model(f"cuda:0-{ranks - 1}", load_folder(folder), slots, adapters=adapters)
    model.gpus, model.nccl = devices, library
    return model


def run_rank(channel: Channel) -> None:
    with contextlib.suppress(Closed, threading.BrokenBarrierError):
        rank.main(channel)
    channel.end()
