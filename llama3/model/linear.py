"""The product behind every projection: `x @ w.T` in float32, with w left in the checkpoint's own dtype.

BLAS has no bfloat16. A float32 copy of w would double the memory, and with one row of x the time goes into reading w
from memory. So w is taken in tiles of rows: each tile is converted to float32, multiplied while it is still in the
CPU's cache, and overwritten by the next. The conversion is exact, because a bfloat16 is the upper half of a float32.
The tiles are shared among threads (`threads.py`).

Reproducibility: the tiles follow from the shapes alone and each is computed by one BLAS thread, so the result does not
depend on the number of threads. It does depend on the number of rows of x: BLAS has one way of adding for a single
row, another for a few, and another for many, and they round differently.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from llama3.model.threads import share

FEW = 8  # up to this many rows of x, BLAS's kernel for small matrices is faster than its general one
MANY = 128  # from this many rows of x on, the product costs more than the conversion
SMALL_PRODUCT = 10**6  # multiply-adds; up to this many, OpenBLAS takes its kernel for small matrices
# A few rows of x use each tile once, so it should stay in a core's own cache (L2): entries of a tile, 1 MB as float32.
# BLAS repacks x for every tile, so with more rows fewer and larger tiles pay off: rows of w in a tile.
SMALL_TILE, TILE_ROWS, MANY_TILE_ROWS = 2**18, 256, 512


class Matrix(Protocol):
    """A matrix that brings its own `product`, such as `lora.LoraMatrix` or `compiled.linear_numba.NumbaMatrix`."""

    def product(self, x: np.ndarray) -> np.ndarray: ...


def linear(x: np.ndarray, w: np.ndarray | Matrix) -> np.ndarray:
    """x (T, n_in) float32 -> x @ w.T, (T, n_out) float32.

    w (n_out, n_in): bfloat16, float16, float32, or integers of 8 bits; any strides.
    """
    if not isinstance(w, np.ndarray):
        return w.product(x)
    assert x.dtype == np.float32 and x.shape[1] == w.shape[1], (x.dtype, x.shape, w.shape)
    out = np.empty((len(x), len(w)), np.float32)
    if len(x):  # else no logits are needed for this chunk of a prompt: do not read the output matrix
        height = MANY_TILE_ROWS if len(x) >= MANY else TILE_ROWS  # rows of w in a tile
        if len(x) <= FEW:
            height = max(8, SMALL_TILE // max(1, w.shape[1]) // 8 * 8)  # BLAS works in eights
        share(partial(_multiply, x, w, out, height), len(w), height)
    return out


def _multiply(x: np.ndarray, w: np.ndarray, out: np.ndarray, height: int, tiles: Iterator[slice]) -> None:
    """Multiply tile after tile: `tiles` are slices of up to `height` rows of w, which other threads draw from too."""
    buffer = np.empty((min(height, len(w)), w.shape[1]), np.float32)
    for rows in tiles:
        tile = w[rows]
        if tile.dtype != np.float32:
            buffer[: len(tile)] = tile
            tile = buffer[: len(tile)]
        columns = out[:, rows]  # this tile's part of the result
        if len(x) == 1:
            np.matmul(tile, x[0], out=columns[0])
        elif len(x) <= FEW:
            step = max(4, SMALL_PRODUCT // x.size)
            for begin in range(0, len(tile), step):
                columns[:, begin : begin + step] = x @ tile[begin : begin + step].T
        else:
            columns[:] = (tile @ x.T).T  # with few rows up to 1.2 times as fast as x @ tile.T


def linears(x: np.ndarray, *matrices: np.ndarray | Matrix) -> Sequence[np.ndarray]:
    """`linear` of the same x by each matrix. A kind of matrix whose product converts x first converts it once."""
    kinds = {type(w) for w in matrices}
    products = getattr(kinds.pop(), "products", None) if len(kinds) == 1 else None
    return products(x, matrices) if products else [linear(x, w) for w in matrices]
