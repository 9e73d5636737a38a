"""`x @ w.T` for weights in 8 or 4 bits and few rows of x, compiled by numba. `quantised_kernels.py` has the kernels.

NumPy turns a tile of codes into float32 in several passes over memory, and then multiplies. Here each code is read once
and becomes a float32 in a register. So decoding is faster than in bfloat16 as far as there are fewer bytes to read.

A row's bits do not depend on the other rows of x, as long as they are at most MOST_ROWS, which is 32. More rows are
multiplied by BLAS, in an order of its own, after a compiled loop has turned a tile of codes into float32.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from llama3.model.compiled import quantised_kernels as kernels
from llama3.model.compiled.aligned import aligned
from llama3.model.compiled.fits import fits_quantised
from llama3.model.compiled.linear_numba import MOST_ROWS, slice_rows
from llama3.model.linear import MANY, MANY_TILE_ROWS, TILE_ROWS
from llama3.model.quantised import QuantisedMatrix
from llama3.model.threads import share

CODES = {"int8": kernels.SIGNED, "uint8": kernels.UNSIGNED, "float8_e4m3fn": kernels.FLOAT8}  # those of 8 bits


def for_kernels(w: QuantisedMatrix) -> tuple[int, int, str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The kinds of codes and zeros and the dtype of the scales, for the kernels of w; and codes, scales and zeros."""
    kind = kernels.HALF_BYTES if w.bits == 4 else CODES[w.codes.dtype.name]
    scale = w.scale if w.scale.dtype != np.float16 or kernels.HALVES else w.scale.astype(np.float32)
    if isinstance(w.zero, np.ndarray):
        zero, zeros = by_row(w, w.zero.astype(np.int16)), kernels.SHIFTED_BY_GROUP
    else:
        zero, zeros = np.full((1, 1), w.zero, np.int16), kernels.SHIFTED if w.zero else kernels.NOT_SHIFTED
    stored = scale if scale.dtype == np.float32 else scale.view(np.uint16)
    return kind, zeros, scale.dtype.name, (w.codes.view(np.uint8), by_row(w, stored), zero)


def by_row(w: QuantisedMatrix, of_groups: np.ndarray) -> np.ndarray:
    """Scales or zeros with as many rows as w, aligned."""
    height = w.group[0]
    if height > 1:
        of_groups = np.repeat(of_groups, min(height, len(w)), axis=0)[: len(w)]
    return np.require(of_groups, requirements=["C", "A"])


class NumbaQuantisedMatrix:
    """A quantised matrix that `linear` multiplies with few rows of x by compiled kernels."""

    def __init__(self, w: QuantisedMatrix) -> None:
        assert fits_quantised(w), (w.shape, w.bits, w.codes.dtype, w.group)
        self.w, self.shape = w, w.shape
        kind, zeros, scale_type, (codes, scale, zero) = for_kernels(w)
        table = np.arange(16, dtype=np.float32) if w.bits == 4 else np.zeros(16, np.float32)
        if w.table is not None:
            table = w.table.astype(np.float32)
        if zeros == kernels.SHIFTED:
            table = table - np.float32(zero[0, 0])
        width = min(w.group[1], w.shape[1])
        in_vector = max(1, kernels.BLOCK // width) if w.bits == 4 else 1
        scales = 0 if width == w.shape[1] else in_vector  # that a vector of codes has; 0: a row has one
        self._ordered = w.bits == 4  # whether x must be `in_order`
        self._arrays = codes, scale, zero, table, width
        self._kernel = None
        if kernels.runs(kind, w.table is not None):
            self._kernel = kernels.kernel(kind, scales, zeros, scale_type)
            self._unpack = kernels.unpacking(kind, scales, zeros, scale_type)
            self._kernel.compile()  # now, and not in the first answer
            self._unpack.compile()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.w.nbytes

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) float32 -> x @ w.T, (T, n_out) float32"""
        return self.products(x, [self])[0]

    @staticmethod
    def products(x: np.ndarray, matrices: "Sequence[NumbaQuantisedMatrix]") -> list[np.ndarray]:
        """x (T, n_in) float32 -> x @ w.T of each, (T, n_out) float32. x is put in order once for all of them."""
        assert x.dtype == np.float32, x.dtype
        assert all(x.shape[1] == w.shape[1] for w in matrices), [x.shape, *(w.shape for w in matrices)]
        copies = {False: x}  # x as it is, and in order
        for ordered in {w._ordered for w in matrices}:
            if ordered or len(x) <= MOST_ROWS:  # a long prompt takes memory, so it is not copied only to be aligned
                given = kernels.in_order(x) if ordered else x
                copies[ordered] = aligned(x.shape, np.float32)
                copies[ordered].reshape(given.shape)[:] = given
        return [w._product(copies[w._ordered]) if w._kernel else w.w.product(x) for w in matrices]

    def _product(self, x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), len(self)), np.float32)
        if 0 < len(x) <= MOST_ROWS:
            share(partial(self._few, x, out), len(self), *slice_rows(self._arrays[0].shape[1]))
        elif len(x):
            step = MANY_TILE_ROWS if len(x) >= MANY else TILE_ROWS
            share(partial(self._many, x, out, step), len(self), step)
        return out

    def _few(self, x: np.ndarray, out: np.ndarray, blocks: Iterator[slice]) -> None:
        assert self._kernel is not None
        for rows in blocks:
            self._kernel(x, *self._arrays, out, rows.start, rows.stop)

    def _many(self, x: np.ndarray, out: np.ndarray, height: int, blocks: Iterator[slice]) -> None:
        """The way of `linear.py`, but for the step from codes to float32, which is compiled."""
        buffer = np.empty((min(height, len(self)), x.shape[1]), np.float32)
        for rows in blocks:
            tile = buffer[: rows.stop - rows.start]
            self._unpack(*self._arrays, tile, rows.start)
            out[:, rows] = (tile @ x.T).T
