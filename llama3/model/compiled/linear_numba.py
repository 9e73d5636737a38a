"""`x @ w.T` for few rows of x, compiled by numba: bfloat16 becomes float32 in a register, in the loop that multiplies.

NumPy must write each converted tile to memory and read it again; with few rows of x that costs more than the product.
Here each entry of w is read once, as two bytes. The extra `numba` brings the compiler; `linear_choice.py` decides.

A block of four rows of w meets four rows of x at a time, so that each entry that is loaded is used four times: 4 x 4
sums are as many as the registers hold. One to three rows of x are left for a block of their own. Every sum is added up
in the same order. So a row's bits do not depend on the other rows, as long as they are at most MOST_ROWS: more rows are
multiplied by BLAS, in an order of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from llama3.model.compiled import vectors
from llama3.model.compiled.fits import fits
from llama3.model.compiled.jit import compiled
from llama3.model.compiled.vectors import FLOAT, INT, LANES, dot_products, instruction
from llama3.model.linear import linear
from llama3.model.threads import share

MOST_ROWS = 32  # of x. Above, NumPy's tiles are faster: BLAS uses every entry that it loads more often
STEP, MOST = 2**19, 2**22  # bytes of w that a thread takes at a time, at least and at most

READ_ONLY = "Array({}, 2, 'C', readonly=True)"
SIGNATURE = f"void({READ_ONLY.format('float32')}, {READ_ONLY.format('uint16')}, float32[:, ::1], int64, int64)"


@dataclass(frozen=True)
class NumbaMatrix:
    """A bfloat16 matrix that `linear` multiplies with few rows of x by the kernels of this file."""

    w: np.ndarray  # (n_out, n_in) bfloat16; n_out is a multiple of 4, n_in of 16; may be read-only

    def __post_init__(self) -> None:
        assert fits(self.w, 4, 16), (self.w.dtype, self.w.shape, self.w.flags)
        multiply.compile()  # now, and not in the first answer

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) float32 -> (T, n_out) float32"""
        if not 0 < len(x) <= MOST_ROWS:
            return linear(x, self.w)
        assert x.dtype == np.float32 and x.shape[1] == self.w.shape[1], (x.dtype, x.shape, self.w.shape)
        x = np.ascontiguousarray(x)
        out = np.empty((len(x), len(self.w)), np.float32)
        share(partial(_multiply, x, self.w.view(np.uint16), out), len(self.w), *slice_rows(2 * self.w.shape[1]))
        return out


def slice_rows(row_bytes: int) -> tuple[int, int]:
    """How many rows of w a thread takes at a time, at least and at most: multiples of 4."""
    return max(4, STEP // row_bytes // 4 * 4), max(4, MOST // row_bytes // 4 * 4)


def _multiply(x: np.ndarray, w: np.ndarray, out: np.ndarray, blocks: Iterator[slice]) -> None:
    for rows in blocks:
        multiply(x, w, out, rows.start, rows.stop)


@instruction
def tile(height, out, x, w, t, n):
    """out[t + i, n : n + 4] = x[t + i] @ w[n : n + 4].T for i below the height, a tuple of one number"""
    rows = [lambda k, i=t + i: x.load(LANES, i, k) for i in range(height[0])]
    columns = [lambda k, j=n + j: widen(w.load(LANES, j, k)) for j in range(4)]
    for i, products in enumerate(dot_products(rows, columns, w.shape[1])):
        out.store(products, t + i, n)


def widen(bits):
    """The bits of bfloat16 numbers -> the same numbers as float32, whose upper halves they are."""
    return (bits.convert("zext", INT) << 16).convert("bitcast", FLOAT)


FOUR, THREE, TWO, ONE = (4,), (3,), (2,), (1,)


@compiled(SIGNATURE, uses=[vectors], error_model="numpy")
def multiply(x, w, out, begin, end):
    """out[:, begin:end] = x @ w[begin:end].T. A block of w stays in the cache while x passes by."""
    fours = len(x) - len(x) % 4
    for n in range(begin, end, 4):
        for t in range(0, fours, 4):
            tile(FOUR, out, x, w, t, n)
        if len(x) - fours == 3:
            tile(THREE, out, x, w, fours, n)
        elif len(x) - fours == 2:
            tile(TWO, out, x, w, fours, n)
        elif len(x) - fours == 1:
            tile(ONE, out, x, w, fours, n)
