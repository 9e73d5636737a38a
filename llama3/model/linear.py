"""The matrix product of every projection: y = x W^T in float32, with W left in the checkpoint's own dtype.

BLAS knows no bfloat16. Converting W as a whole would double the memory, and at one row of x the product takes as long
as W takes to arrive from memory. So W is taken in tiles of rows: a tile is converted to float32, multiplied while it is
still in the CPU's cache, and overwritten by the next. The conversion is exact: a bfloat16 is the upper half of a
float32. Both steps run outside Python's lock, so as many Python threads share the tiles as BLAS would use threads of
its own, and BLAS is held to one thread meanwhile.

What is bitwise: the tiles follow from the shapes alone and one BLAS thread computes each, so the result does not depend
on the number of threads; nor does a row of it, up to VECTORS rows of x, depend on the other rows. With more rows BLAS
blocks them together, and a row's rounding differs with their number. A matrix of one tile is left to BLAS and however
many threads it takes.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

VECTORS = 4  # up to so many rows of x, one matrix-vector product a row beats BLAS's matrix product
MANY = 128  # from so many rows of x on, the product outweighs the conversion, and larger tiles are worth their place
SMALL_TILE = 2**19  # entries, 2 MB: the core's share of the cache
LARGE_TILE = 2**21  # entries, 8 MB: BLAS repacks x for every tile, so fewer of them

_lock = threading.Lock()  # the number of BLAS threads belongs to the process: one product at a time may change it
_workers: tuple[ThreadpoolController, ThreadPoolExecutor] | None = None


class Matrix(Protocol):
    """A matrix that is not one array and multiplies by itself: `lora.Adapted`."""

    def product(self, x: np.ndarray) -> np.ndarray: ...


def linear(x: np.ndarray, w: np.ndarray | Matrix) -> np.ndarray:
    """x (T, in) float32; w (out, in) bfloat16, float16 or float32, any strides -> x w^T, (T, out) float32."""
    if not isinstance(w, np.ndarray):
        return w.product(x)  # LoRA adds to it (lora.py)
    assert x.dtype == np.float32 and x.shape[1] == w.shape[1], (x.dtype, x.shape, w.shape)
    out = np.empty((len(x), len(w)), np.float32)
    if len(x) == 0:
        return out  # a chunk of a prompt that draws nothing must not read the whole output matrix
    entries = SMALL_TILE if len(x) < MANY else LARGE_TILE
    height = max(8, entries // max(1, w.shape[1]) // 8 * 8)  # rows of w in a tile; BLAS works in eights
    tiles = iter(range(0, len(w), height))
    if len(w) <= height:
        _multiply(x, w, out, tiles, height)
    else:
        _share(x, w, out, tiles, height)
    return out


def _multiply(x: np.ndarray, w: np.ndarray, out: np.ndarray, tiles: Iterator[int], height: int) -> None:
    """Work through tiles until there are none left; several threads may draw from the same `tiles`."""
    buffer = np.empty((min(height, len(w)), w.shape[1]), np.float32)
    for begin in tiles:
        tile = w[begin : begin + height]  # (rows, in)
        if tile.dtype != np.float32:
            buffer[: len(tile)] = tile
            tile = buffer[: len(tile)]
        columns = out[:, begin : begin + height]  # (T, rows)
        if len(x) <= VECTORS:
            for vector, result in zip(x, columns):
                np.matmul(tile, vector, out=result)
        else:
            columns[:] = (tile @ x.T).T  # the tile on the left: up to 1.2 x as fast as x @ tile.T for few rows


def _share(x: np.ndarray, w: np.ndarray, out: np.ndarray, tiles: Iterator[int], height: int) -> None:
    """`_multiply` on as many threads as BLAS is set to use, this one among them."""
    global _workers
    with _lock:
        if _workers is None:
            _workers = ThreadpoolController(), ThreadPoolExecutor(os.cpu_count(), "llama3-linear")
        blas, pool = _workers
        found = [library["num_threads"] for library in blas.info() if library["user_api"] == "blas"]
        threads = max(found, default=os.cpu_count() or 1)  # none found: a BLAS that threadpoolctl cannot hold back
        with blas.limit(limits=1, user_api="blas"):
            others = [pool.submit(_multiply, x, w, out, tiles, height) for _ in range(threads - 1)]
            try:
                _multiply(x, w, out, tiles, height)
            finally:
                others = [other for other in others if not other.cancel()]  # on a busy machine some never began
                wait(others)  # also when Ctrl-C arrives: BLAS gets its threads back only when nobody multiplies
        for other in others:
            other.result()  # raises what it raised


def _forget_workers() -> None:
    """A forked child has none of its parent's threads, and might find the lock taken for good."""
    global _lock, _workers
    _lock, _workers = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
