"""The memory of a GPU that does not exist, as two libraries share it, and what its only stream is doing."""

import mmap
import weakref
from typing import Any

import numpy as np

TOTAL = 85_000_000_000  # bytes of an H100 with 80 GB
CONTEXT = 600_000_000  # bytes that the driver keeps
PROCESSORS = 132
MAX_SHARED = 227 * 1024  # bytes of shared memory a block
SMALL = 1 << 20  # bytes: larger arrays have an address and no contents


class StandInError(Exception):
    """What a GPU, or a library for it, would refuse or would do wrongly."""


class OutOfMemory(Exception):
    """The card is full."""


class Pool:
    """A library's memory. What its arrays no longer use stays reserved until it is trimmed, as both libraries do it."""

    def __init__(self, card: "Card"):
        self.card, self.live, self.reserved = card, 0, 0
        card.pools.append(self)

    def take(self, nbytes: int) -> None:
        nbytes = -(-nbytes // 512) * 512
        if self.live + nbytes > self.reserved and self.card.used + self.live + nbytes - self.reserved > TOTAL:
            self.trim()  # both libraries try that before they give up
        if self.card.used + max(0, self.live + nbytes - self.reserved) > TOTAL:
            raise OutOfMemory(f"{nbytes / 1e9:.2f} GB wanted, {(TOTAL - self.card.used) / 1e9:.2f} GB free")
        self.live += nbytes
        self.reserved = max(self.reserved, self.live)
        self.card.peak = max(self.card.peak, self.card.used)

    def give(self, nbytes: int) -> None:
        self.live -= -(-nbytes // 512) * 512

    def trim(self) -> None:
        self.reserved = self.live


class Card:
    torch_device = "meta"
    total = TOTAL

    def __init__(self, emulator: Any = None):
        self.emulator = emulator  # runs the kernels, if it is there
        self.pools: list[Pool] = []
        self.cupy, self.torch = Pool(self), Pool(self)
        self.peak = 0
        self.capturing: list[Any] | None = None  # the launches of a capture that has begun
        self.torch_busy = False  # has torch queued work since it was last waited for?

    @property
    def used(self) -> int:
        return CONTEXT + sum(pool.reserved for pool in self.pools)

    def not_while_capturing(self, what: str) -> None:
        if self.capturing is not None:
            raise StandInError(f"{what} is not permitted while a stream is capturing")

    def memory(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of CuPy's, counted until it is freed."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.cupy.take(nbytes)
        if self.emulator:
            array = self.emulator.alloc(shape, dtype)
            owner = array
            while not hasattr(owner, "mapped"):  # the allocation under all views
                owner = owner.base
        else:
            owner = address_space(nbytes)
            array = owner[:nbytes].view(dtype).reshape(shape)
        weakref.finalize(owner, self.cupy.give, nbytes)
        return array


class Bytes(np.ndarray):
    """An array that can be referred to weakly by those who want to know when its memory is freed."""


def address_space(nbytes: int) -> np.ndarray:
    """(nbytes,) uint8: addresses without memory, for as long as nobody touches them."""
    size = max(nbytes, 1)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
    return np.frombuffer(area, np.uint8).view(Bytes)
