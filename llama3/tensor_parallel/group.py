"""The sum over all ranks on a CPU: numbers pass through shared memory, and messages say when they are there.

Each rank writes its part of the sum to its own row of the memory and tells rank 0. Rank 0 adds the rows up in the order
of the ranks, writes the total over its own row, and lets the others go on. The total is computed once, so it has the
same bits in every rank.
"""

import mmap
import os
import tempfile
from collections.abc import Callable

import numpy as np

from llama3.tensor_parallel.channel import ABANDON, FAILED, GO_ON, MEET, Channel, Closed, RankError, RankGone

ROOM = 1 << 20  # numbers in a row of the memory; longer arrays go through it in pieces


class Interrupted(Exception):
    """Rank 0 gives up this step."""


def open_memory(ranks: int) -> int:
    """Memory for all ranks without a name -> its file descriptor. The system frees it with the last process."""
    if hasattr(os, "memfd_create"):  # Linux. /dev/shm may be too small in a container
        file = os.memfd_create("llama3-ranks")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, ranks * ROOM * 4)
    return file


def map_memory(file: int, ranks: int) -> np.ndarray:
    """The memory as an array, (ranks, ROOM) float32. It stays when the file is closed."""
    return np.frombuffer(mmap.mmap(file, ranks * ROOM * 4), np.float32).reshape(ranks, ROOM)


class FirstGroup:
    """The group as rank 0 sees it."""

    def __init__(self, channels: list[Channel], parts: np.ndarray):
        """channels: to rank 1, 2, ...; parts (ranks, ROOM) float32: the shared memory."""
        self.channels, self.parts = channels, parts
        self.step = 0  # number of the step; `begin` counts
        self.interrupted = False  # set by another thread: give up at the next sum

    def begin(self, kind: bytes, payload: bytes) -> None:
        """Tell all ranks to begin a step. Raises RankError if one is gone."""
        self.step += 1
        self._for_each(lambda channel: channel.send(kind, payload))

    def all_reduce(self, x: np.ndarray) -> np.ndarray:
        """x float32 -> the sum over all ranks, in the same shape. Raises RankError, or Interrupted."""
        flat = x.reshape(-1)
        out = np.empty_like(flat)
        for begin in range(0, flat.size, ROOM):
            piece = slice(begin, min(begin + ROOM, flat.size))
            total, n = flat[piece].copy(), piece.stop - begin
            self._for_each(self._wait_for_part)
            if self.interrupted:
                raise Interrupted
            for part in self.parts[1:]:
                total += part[:n]
            self.parts[0, :n] = out[piece] = total
            self._for_each(lambda channel: channel.send(GO_ON))
        return out.reshape(x.shape)

    def abandon(self) -> None:
        """End the step in the middle: a rank that waits in a sum gives up, the others take no notice."""
        self._for_each(lambda channel: channel.send(ABANDON))

    def _wait_for_part(self, channel: Channel) -> None:
        while True:
            kind, payload = channel.receive()
            if kind == FAILED:
                raise RankError(payload.decode())
            if kind == MEET and int.from_bytes(payload, "little") == self.step:  # not one of an abandoned step
                return

    def _for_each(self, work: Callable[[Channel], None]) -> None:
        for rank, channel in enumerate(self.channels, 1):
            try:
                work(channel)
            except Closed:
                raise RankGone(rank) from None
            except RankError as error:
                raise RankError(f"rank {rank}: {error}") from None


class OtherGroup:
    """The group as another rank sees it."""

    def __init__(self, rank: int, channel: Channel, parts: np.ndarray):
        self.rank, self.channel, self.parts = rank, channel, parts
        self.step = 0  # number of the step; the rank counts

    def all_reduce(self, x: np.ndarray) -> np.ndarray:
        """As that of rank 0. Raises Interrupted, or Closed if rank 0 is gone."""
        flat = x.reshape(-1)
        out = np.empty_like(flat)
        for begin in range(0, flat.size, ROOM):
            piece = slice(begin, min(begin + ROOM, flat.size))
            n = piece.stop - begin
            self.parts[self.rank, :n] = flat[piece]
            self.channel.send(MEET, self.step.to_bytes(8, "little"))
            kind, _ = self.channel.receive()
            if kind == ABANDON:
                raise Interrupted
            out[piece] = self.parts[0, :n]
        return out.reshape(x.shape)
