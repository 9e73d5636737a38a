"""The product y = x @ w.T on Intel's AMX tiles: at the speed of bfloat16, and by default as accurate as float32.

`amx_kernels.py` explains the instructions, and why a row of y has the same bits whatever the number of rows of x. Each
thread takes some rows of W at a time, multiplies them by all of x to a buffer, in which each row of x is a column, and
transposes the buffer into y while it is in the cache.

Where the result differs from NumPy's: numbers below 1.2e-38 count as 0, and so do the parts of x that are so small,
which costs numbers below 1e-33 some of their accuracy. An infinite weight gives NaN where NumPy gives infinity. With
one part, x is rounded to bfloat16, and the largest float32 numbers become infinite.
"""

import ctypes
import functools
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llama3.model.compiled.aligned import aligned
from llama3.model.compiled.fits import fits
from llama3.model.threads import share

FEW = 16  # up to this many rows of x, they are one tile and `few` multiplies
DIRECT = 64  # up to this many, rows of W are multiplied so few times that copying them to aligned memory does not pay
SLICE = 2**20  # entries of W that a thread takes at a time: 2 MB
BLOCK = 128  # rows of W that are copied at a time: 1 MB where n_in is 4096, half of a core's own cache (L2)
PACKED = 2**17  # entries of x that a thread packs at a time
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18  # Linux's numbers


@functools.cache
def missing() -> str | None:
    """None if this process may use AMX, else a clause that says what is missing. numba must be installed.

    Linux wants to be asked for the tiles' memory once in each process; its threads and forks inherit the answer.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "AMX is used on Linux on x86-64 only"
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    if "amx_bf16" not in flags:
        return "the CPU has no AMX with bfloat16 (no amx_bf16 among the flags of /proc/cpuinfo)"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA):
        return f"Linux refuses AMX to this process (arch_prctl: {os.strerror(ctypes.get_errno())})"
    from llama3.model.compiled import amx_kernels

    return None if amx_kernels.compilable() else "numba compiles for a CPU without AMX (NUMBA_CPU_FEATURES)"


@dataclass(frozen=True)
class AmxMatrix:
    """A weight matrix that AMX multiplies, for `linear`. Making the first compiles the kernels."""

    w: np.ndarray  # (n_out, n_in) bfloat16; may be read-only
    parts: int = 3  # bfloat16 numbers that a float32 of x is split into: 3 keep all its bits, 1 rounds it

    def __post_init__(self) -> None:
        assert fits(self.w, 32, 32) and self.parts in (1, 2, 3), (self.w.dtype, self.w.shape, self.w.flags, self.parts)
        assert missing() is None, missing()  # or LLVM would end the process
        from llama3.model.compiled import amx_kernels

        for kernel in (amx_kernels.pack, amx_kernels.few, amx_kernels.many):
            kernel.compile()

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) float32 -> x @ w.T, (T, n_out) float32"""
        return self.products(x, [self])[0]

    @staticmethod
    def products(x: np.ndarray, matrices: "Sequence[AmxMatrix]") -> list[np.ndarray]:
        """x (T, n_in) float32 -> x @ w.T of each, (T, n_out) float32. x is packed once for all of them."""
        return products(x, matrices)

    def multiply(self, packed: np.ndarray, y: np.ndarray) -> None:
        """y (T, n_out) = x, which is packed, times w"""
        n_out, n_in = self.w.shape
        rows = min(BLOCK if len(y) > DIRECT else max(32, SLICE // n_in // 32 * 32), n_out)
        share(partial(_multiply, packed, self.w.view(np.uint16), y, rows), n_out, rows)


def products(x: np.ndarray, matrices: Sequence[Any]) -> list[np.ndarray]:
    """x (T, n_in) float32 -> x @ w.T of each, (T, n_out) float32. matrices: AmxMatrix or AmxQuantisedMatrix."""
    parts = {matrix.parts for matrix in matrices}
    assert x.dtype == np.float32 and len(parts) == 1, (x.dtype, parts)
    assert all(x.shape[1] == matrix.w.shape[1] for matrix in matrices), [x.shape, *(m.w.shape for m in matrices)]
    out = [np.empty((len(x), len(matrix.w)), np.float32) for matrix in matrices]
    if len(x):
        packed = pack(np.ascontiguousarray(x), parts.pop())
        for matrix, y in zip(matrices, out):
            matrix.multiply(packed, y)
    return out


def pack(x: np.ndarray, parts: int) -> np.ndarray:
    """x (T, n_in) float32 -> (blocks of 16 rows, n_in / 32, parts, 16 pairs of columns, 16 rows) uint32"""
    from llama3.model.compiled import amx_kernels

    blocks = 1 if len(x) <= FEW else -(-len(x) // 32) * 2
    packed = aligned((blocks, x.shape[1] // 32, parts, 16, 16), np.uint32)

    def work(slices: Iterator[slice]) -> None:
        columns = aligned((32, 16), np.float32)
        for steps in slices:
            amx_kernels.pack(x, packed, columns, steps.start, steps.stop)

    share(work, packed.shape[1], max(1, PACKED // (32 * len(x))))
    return packed


def _multiply(x: np.ndarray, w: np.ndarray, y: np.ndarray, rows: int, slices: Iterator[slice]) -> None:
    """Multiply slice after slice, each of up to `rows` rows of w, by packed x, into columns of y (T, n_out)."""
    from llama3.model.compiled import amx_kernels

    T = len(y)
    buffer = aligned((rows, 16 * len(x)), np.float32)
    copy = aligned((rows if T > DIRECT else 0, w.shape[1] // 2), np.uint32)
    for part in slices:
        if T <= FEW:
            amx_kernels.few(w, x, buffer, part.start, part.stop)
        else:
            amx_kernels.many(w, x, buffer, copy, part.start, part.stop)
        y[:, part] = buffer[: part.stop - part.start, :T].T
