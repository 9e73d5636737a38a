"""Intel's AMX instructions in NumPy, stricter than a CPU, so that the kernels' Python functions run anywhere.

A tile must have been set before it is read. Memory may be touched only inside the arrays that a kernel got as arguments
(and the configuration). All of them but W must be touched in whole cache lines, from multiples of 64 bytes, and nothing
may be written to W or x. Each thread has tiles of its own, and no configuration outside of a kernel.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from numba import njit

from llama3.model.compiled import amx_kernels, amx_quantised_kernels, linear_amx, linear_amx_quantised
from llama3.model.compiled.quantised_kernels import HALF_BYTES

TINY = np.float32(2.0**-126)
original_kernel, original_unpack = amx_quantised_kernels.kernel, amx_quantised_kernels.unpack
original_add_scaled = amx_quantised_kernels.add_scaled


class AmxError(Exception):
    """The kernel did what a CPU would refuse, or what would be slow there or wrong."""


def flushed(value: np.ndarray) -> np.ndarray:
    """Inputs: what is smaller than the smallest normal float32 counts as 0."""
    return np.where(np.abs(value) < TINY, value.dtype.type(0), value)


def rounded(exact: np.ndarray, small: bool = True) -> np.ndarray:
    """float64 -> float32 to nearest, ties to even, as float64. What is tiny once it is rounded to 24 bits becomes 0.

    small: whether a nonzero number below 2**-75 is possible.
    """
    with np.errstate(over="ignore"):
        result = exact.astype(np.float32).astype(np.float64)
        if small:
            result[np.abs((exact * 2.0**64).astype(np.float32)) < TINY * 2.0**64] = 0
    return result


@np.errstate(invalid="ignore")
def dot(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """TDPBF16PS (Intel's Software Developer's Manual): even and odd columns are added up from 0, then all to c.

    c (..., m, n) float32; a (..., m, 16, 2) and b (..., 16, n, 2) float32 that hold bfloat16

    Every sum is rounded once. float64 holds a product, of 16 bits. A sum may need more than float64's 53 bits, but only
    if one term is below 2**-29 of the other: then it rounds to the larger term, in float64 as without its limit.
    """
    a, b, c = (flushed(value).astype(np.float64) for value in (a, b, c))
    products = np.moveaxis(a[..., :, None, :, :] * np.swapaxes(b, -3, -2)[..., None, :, :, :], -2, 0)
    small = bool(np.any((np.abs(products) < 2.0**-60) & (products != 0)))  # their sums are multiples of their last bits
    sums = np.zeros(products.shape[1:])  # (..., m, n, 2)
    for product in products:
        sums = rounded(sums + product, small)
    return rounded(c + rounded(sums[..., 0] + sums[..., 1])).astype(np.float32)


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 -> float32"""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Tiles(threading.local):
    """A thread's tiles, and the memory that its kernel may touch."""

    def __init__(self) -> None:
        self.configured = False
        self.tiles: dict[int, np.ndarray] = {}  # number -> (16, 64) uint8
        self.memory: list[tuple[np.ndarray, bool, bool]] = []  # bytes, whether aligned, whether writable
        self.count = 0

    def _bytes(self, address: int, size: int, write: bool) -> np.ndarray:
        for array, aligned, writable in self.memory:
            begin = int(address) - array.ctypes.data
            if begin >= 0 and begin + size <= array.size:
                if aligned and int(address) % 64:
                    raise AmxError(f"{address:#x} is not a multiple of 64")
                if write and not writable:
                    raise AmxError(f"a kernel writes to {address:#x}, which is input")
                return array[begin : begin + size]
        raise AmxError(f"{size} bytes at {address:#x} are in none of the kernel's arrays")

    def _tile(self, tile: int) -> np.ndarray:
        if not self.configured or tile not in range(8):
            raise AmxError(f"tile {tile} is not configured")
        if tile not in self.tiles:
            raise AmxError(f"tile {tile} is read before it is set")
        return self.tiles[tile]

    def ldtilecfg(self, address: int) -> None:
        config = self._bytes(address, 64, False)
        palette, start, columns, rows = config[0], config[1], config[16:32].view(np.uint16), config[48:56]
        if (palette, start) != (1, 0) or config[2:16].any() or config[32:48].any() or config[56:].any():
            raise AmxError("the configuration is not valid")
        if (columns != 64).any() or (rows != 16).any():
            raise AmxError("the simulator knows full tiles only")
        self.configured, self.tiles = True, {}

    def tilerelease(self) -> None:
        self.configured, self.tiles = False, {}

    def tilezero(self, tile: int) -> None:
        self.tiles[tile] = np.zeros((16, 64), np.uint8)
        self._tile(tile)

    def tileloadd(self, tile: int, address: int, stride: int) -> None:
        self.tiles[tile] = np.stack([self._bytes(address + row * stride, 64, False) for row in range(16)])
        self._tile(tile)

    def tilestored(self, tile: int, address: int, stride: int) -> None:
        for row, content in enumerate(self._tile(tile)):
            self._bytes(address + row * stride, 64, True)[:] = content

    def tdpbf16ps(self, to: int, w: int, x: int) -> None:
        a, b = (widened(self._tile(tile).view(np.uint16)).reshape(16, 16, 2) for tile in (w, x))
        if len({to, w, x}) < 3:
            raise AmxError("the three tiles must differ")
        self.tiles[to] = dot(self._tile(to).view(np.float32), a, b).view(np.uint8)
        self.count += 1

    def run(self, kernel: Any, *arguments: Any) -> None:
        """Call the Python function of a kernel: of `few` or `many`, whose first argument is W, or of a quantised W.

        Before x come the codes, scales and zeros of a quantised W, which no instruction for tiles may touch.
        """
        arrays = [array for array in arguments if isinstance(array, np.ndarray)]
        i = next(i for i, array in enumerate(arrays) if array.dtype == np.uint32)  # of x
        known = [(amx_kernels.CONFIG, False, False), (arrays[i], True, False)]
        known += [(arrays[0], False, False)] if i == 1 else []
        known += [(array, True, True) for array in arrays[i + 1 :]]
        self.memory = [(array.reshape(-1).view(np.uint8), *flags) for array, *flags in known]
        kernel.py_func(*arguments)
        if self.configured:
            raise AmxError("the tiles are not released")
        self.memory = []


INSTRUCTIONS = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps")


@contextmanager
def simulated() -> Iterator[Tiles]:
    """AMX's matrices work as on a CPU with AMX: all but the instructions, and numba's compiler, is the real code.

    What the kernel of quantised matrices does without tiles is compiled for this CPU.
    """
    tiles = Tiles()
    with ExitStack() as stack:
        patch = lambda module, name, new: stack.enter_context(mock.patch.object(module, name, new))  # noqa: E731
        for module in (amx_kernels, amx_quantised_kernels):
            for name in INSTRUCTIONS:
                patch(module, name, getattr(tiles, name))
            patch(module, "address", lambda array: array.ctypes.data)
        patch(amx_quantised_kernels, "unpack", lambda form, *arguments: vector_parts(form)[0](*arguments))
        patch(amx_quantised_kernels, "add_scaled", lambda form, *arguments: vector_parts(form)[1](*arguments))
        patch(amx_quantised_kernels, "kernel", partial(simulated_kernel, tiles))
        for kernel in (amx_kernels.few, amx_kernels.many):
            patch(kernel, "compile", lambda: None)
            patch(kernel, "_compiled", lambda *arguments, kernel=kernel: tiles.run(kernel, *arguments))
        for module in (linear_amx, linear_amx_quantised):
            patch(module, "missing", lambda: None)
        yield tiles


def simulated_kernel(tiles: Tiles, *kinds: Any) -> Any:
    kernel = original_kernel(*kinds)

    class Simulated:
        def compile(self) -> None: ...

        def __call__(self, *arguments: Any) -> None:
            tiles.run(kernel, *arguments)

    return Simulated()


@functools.cache
def vector_parts(form: tuple[int, ...]) -> tuple[Any, Any]:
    """`unpack` and `add_scaled` for one kind of matrix, as functions."""

    @njit
    def unpack(tiles, codes, zero, row, to, first, place, n, g):
        original_unpack(form, tiles, codes, zero, row, to, first, place, n, g)

    @njit
    def add_scaled(y, sums, scale, n, to, block, first, g):
        original_add_scaled(form, y, sums, scale, n, to, block, first, g)

    def inside_unpack(tiles: Any, codes: Any, zero: Any, row: int, to: int, first: int, place: int, *n_g: int) -> None:
        tile_bytes = 16 if form[0] == HALF_BYTES else 32
        n, g = n_g
        if row >= len(codes) or (first + n) * tile_bytes > codes.shape[1] or (len(zero) > 1 and g >= zero.shape[1]):
            raise AmxError(f"no codes of row {row} up to column tile {first + n}, group {g}")
        if to >= 16 * len(tiles) or place + n > tiles.shape[1]:
            raise AmxError(f"row {to} is unpacked up to column tile {place + n} of tiles {tiles.shape}")
        unpack(tiles, codes, zero, row, to, first, place, n, g)

    def inside_add(y: Any, sums: Any, scale: Any, n: int, to: int, block: int, first: int, g: int) -> None:
        if block >= len(y) or to + 32 > y.shape[1] or first + 32 > len(sums):
            raise AmxError(f"sums from {first} are added to block {block} of y {y.shape} from {to} on")
        if n + 32 > len(scale) or g >= scale.shape[1]:
            raise AmxError(f"no scales of rows {n} to {n + 32}, group {g}")
        add_scaled(y, sums, scale, n, to, block, first, g)

    return inside_unpack, inside_add


def product_in_order(x: np.ndarray, w: np.ndarray, parts: int) -> np.ndarray:
    """What AMX must give, bit by bit: every entry of x @ w.T on its own, without tiles, blocks or threads.

    x (T, n_in) float32, finite; w (n_out, n_in) bfloat16
    """
    assert np.isfinite(x).all()
    y = np.zeros((len(w), len(x)), np.float32)
    a = widened(w.view(np.uint16)).reshape(len(w), -1, 16, 2)
    for k in range(a.shape[1]):
        rest = x[:, 32 * k : 32 * k + 32].copy()
        for part in range(parts):
            last = part == parts - 1
            bits = rest.view(np.uint32)
            b = ((bits + (0x7FFF + (bits >> 16 & 1) if last else 0)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
            y = dot(y, a[:, k], b.reshape(len(x), 16, 2).transpose(1, 0, 2))
            rest -= b
    return y.T
