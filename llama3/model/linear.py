"""The product behind every projection: `x @ w.T` in float32, with w left in the checkpoint's own dtype.

BLAS has no bfloat16. A float32 copy of w would double the memory, and with one row of x the time goes into reading w
from memory. So w is taken in tiles of rows: each tile is converted to float32, multiplied while it is still in the
CPU's cache, and overwritten by the next. The conversion is exact, because a bfloat16 is the upper half of a float32.
The tiles are shared among threads (`threads.py`).

Reproducibility: the tiles follow from the shapes alone and each is computed by one BLAS thread, so the result does not
depend on the number of threads. It does depend on the number of rows of x: BLAS has one way of adding for a single
row, another for a few, and another for many, and they round differently. The exception is a matrix of a single tile,
which BLAS multiplies with its own threads.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import ml_dtypes
import numpy as np

from llama3.model.quantised import QuantisedMatrix
from llama3.model.threads import share

FEW = 8  # up to this many rows of x, BLAS's kernel for small matrices is faster than its general one
MANY = 128  # from this many rows of x on, the product costs more than the conversion
SMALL_PRODUCT = 10**6  # multiply-adds; up to this many, OpenBLAS takes its kernel for small matrices
# A few rows of x use each tile once, so it should stay in a core's own cache (L2): entries of a tile, 1 MB as float32.
# BLAS repacks x for every tile, so with more rows fewer and larger tiles pay off: rows of w in a tile.
SMALL_TILE, TILE_ROWS, MANY_TILE_ROWS = 2**18, 256, 512

CODES = ("int8", "uint8", "float8_e4m3fn")  # of 8 bits, which a compiled kernel takes


class Matrix(Protocol):
    """A matrix that brings its own `product`, such as `lora.LoraMatrix` or `compiled.linear_numba.NumbaMatrix`."""

    def product(self, x: np.ndarray) -> np.ndarray: ...


def fits(w: np.ndarray, rows: int, columns: int) -> bool:
    """Whether w (n_out, n_in) is what a compiled kernel takes: bfloat16, C-contiguous, not empty, aligned, and n_out
    and n_in are multiples of `rows` and `columns`.
    """
    return bool(
        w.dtype == ml_dtypes.bfloat16
        and w.ndim == 2
        and w.size
        and w.shape[0] % rows == w.shape[1] % columns == 0
        and w.flags.c_contiguous
        and w.flags.aligned  # a file may hold it at an odd address
    )


def fits_quantised(w: QuantisedMatrix) -> bool:
    """Whether the compiled kernels take w: rows in multiples of 4, columns of 16 (4 bits: 128), and whole groups.

    A group has all columns, or a multiple of 16. With 4 bits it has all, 16, 32, 64, or a multiple of 128.
    """
    (n_out, n_in), width = w.shape, w.group[1]
    if w.bits == 4:
        known, whole = w.codes.dtype == np.uint8, width in (16, 32, 64) or width % 128 == 0
    else:
        known, whole = w.codes.dtype.name in CODES and w.table is None, width % 16 == 0
    return bool(
        known
        and n_out * n_in
        and n_out % 4 == n_in % (128 if w.bits == 4 else 16) == 0
        and w.codes.flags.c_contiguous
        and (width >= n_in or (whole and n_in % width == 0))
    )


def linear(x: np.ndarray, w: np.ndarray | Matrix) -> np.ndarray:
    """x (T, n_in) float32; w (n_out, n_in) bfloat16, float16 or float32, any strides -> x @ w.T, (T, n_out) float32."""
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
