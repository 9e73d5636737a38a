"""The product behind every projection: `x @ w.T` in float32, with w left in the checkpoint's own dtype.

BLAS has no bfloat16. A float32 copy of w would double the memory, and with one row of x the time goes into reading w
from memory. So w is taken in tiles of rows: each tile is converted to float32, multiplied while it is still in the
CPU's cache, and overwritten by the next. The conversion is exact, because a bfloat16 is the upper half of a float32.
The tiles are shared among threads (`threads.py`).

Reproducibility: the tiles follow from the shapes alone and each is computed by one BLAS thread, so the result does not
depend on the number of threads. With up to VECTORS rows of x, a row's bits do not depend on the other rows either; with
more, BLAS blocks the rows together, and a row's rounding depends on how many there are. The exception is a matrix of a
single tile, which BLAS multiplies with its own threads.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from llama3.model.threads import run_on_blas_threads

VECTORS = 4  # up to this many rows of x, one matrix-vector product a row is faster than BLAS's matrix product
MANY = 128  # from this many rows of x on, the product costs more than the conversion, and larger tiles pay off
SMALL_TILE = 2**19  # entries: 2 MB, a core's share of the cache
LARGE_TILE = 2**21  # entries: 8 MB. BLAS repacks x for every tile, so many rows want fewer tiles


class Matrix(Protocol):
    """A matrix of several arrays, which brings its own `product`, such as `lora.LoraMatrix`."""

    def product(self, x: np.ndarray) -> np.ndarray: ...


def linear(x: np.ndarray, w: np.ndarray | Matrix) -> np.ndarray:
    """x (T, n_in) float32; w (n_out, n_in) bfloat16, float16 or float32, any strides -> x @ w.T, (T, n_out) float32."""
    if not isinstance(w, np.ndarray):
        return w.product(x)
    assert x.dtype == np.float32 and x.shape[1] == w.shape[1], (x.dtype, x.shape, w.shape)
    out = np.empty((len(x), len(w)), np.float32)
    if len(x) == 0:
        return out  # no logits are needed for this chunk of a prompt: do not read the output matrix
    entries = SMALL_TILE if len(x) < MANY else LARGE_TILE
    height = max(8, entries // max(1, w.shape[1]) // 8 * 8)  # rows of w in a tile; BLAS works in eights
    tiles = iter(range(0, len(w), height))
    if len(w) <= height:
        _multiply(x, w, out, tiles, height)
    else:
        run_on_blas_threads(lambda: _multiply(x, w, out, tiles, height))
    return out


def _multiply(x: np.ndarray, w: np.ndarray, out: np.ndarray, tiles: Iterator[int], height: int) -> None:
    """Multiply tile after tile until `tiles` is empty. Several threads may draw from the same iterator."""
    buffer = np.empty((min(height, len(w)), w.shape[1]), np.float32)
    for begin in tiles:
        tile = w[begin : begin + height]  # up to `height` rows
        if tile.dtype != np.float32:
            buffer[: len(tile)] = tile
            tile = buffer[: len(tile)]
        columns = out[:, begin : begin + height]  # this tile's part of the result
        if len(x) <= VECTORS:
            for vector, result in zip(x, columns):
                np.matmul(tile, vector, out=result)
        else:
            columns[:] = (tile @ x.T).T  # with few rows up to 1.2 times as fast as x @ tile.T
