"""`x @ w.T` for few rows of x, compiled by numba: bfloat16 becomes float32 in a register, in the loop that multiplies.

NumPy must write each converted tile to memory and read it again; with few rows of x that costs more than the product.
Here each entry of w is read once, as two bytes. The extra `numba` brings the compiler; `linear_choice.py` decides.

A block of four rows of w meets one, two or four rows of x, so that each entry that is loaded is used several times:
4 x 4 sums are as many as the registers hold. LLVM vectorises the loops, which it may do because `fastmath` allows it to
reorder a sum; every sum of a kernel is ordered in the same way. So a row's bits do not depend on the other rows, but
they differ between one row, two rows, 3 to MOST_ROWS, and more, which BLAS multiplies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llama3.model.jit import compiled
from llama3.model.linear import linear
from llama3.model.threads import share

MOST_ROWS = 32  # of x. Above, NumPy's tiles are faster: BLAS uses every entry that it loads more often
STEP = 2**19  # entries of w that a thread takes at a time: 1 MB
REORDER = {"reassoc", "contract", "nsz"}  # sums may be reordered and fused, but inf and NaN stay what they are

READ_ONLY = "Array({}, 2, 'C', readonly=True)"
SIGNATURE = f"void({READ_ONLY.format('float32')}, {READ_ONLY.format('uint16')}, float32[:, ::1], int64, int64)"


@dataclass(frozen=True)
class NumbaMatrix:
    """A bfloat16 matrix that `linear` multiplies with few rows of x by the kernels of this file."""

    w: np.ndarray  # (n_out, n_in) bfloat16, in C order, n_out a multiple of 4

    def __post_init__(self) -> None:
        for kernel in (one_row, two_rows, four_rows):
            kernel.compile()  # now, and not in the first answer

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) float32 -> (T, n_out) float32"""
        T = len(x)
        if not 0 < T <= MOST_ROWS:
            return linear(x, self.w)
        assert x.dtype == np.float32 and x.shape[1] == self.w.shape[1], (x.dtype, x.shape, self.w.shape)
        kernel, height = (one_row, 1) if T == 1 else (two_rows, 2) if T == 2 else (four_rows, 4)
        x = np.ascontiguousarray(x)
        if T % height:
            x = np.concatenate([x, np.zeros((-T % height, x.shape[1]), np.float32)])
        out = np.empty((len(x), len(self.w)), np.float32)
        step = max(4, STEP // self.w.shape[1] // 4 * 4)  # rows of w
        share(partial(_multiply, kernel, x, self.w.view(np.uint16), out), len(self.w), step)
        return out[:T]


def _multiply(kernel: Any, x: np.ndarray, w: np.ndarray, out: np.ndarray, blocks: Iterator[slice]) -> None:
    for rows in blocks:
        kernel(x, w, out, rows.start, rows.stop)


@intrinsic
def widen(typing, bits):
    """uint16, the bits of a bfloat16 -> the same number as float32, whose upper half they are."""

    def emit(context, builder, signature, arguments):
        word = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(types.uint16), emit


# Each kernel multiplies rows begin to end of w, whose number is a multiple of four.


@compiled(SIGNATURE, fastmath=REORDER)
def one_row(x, w, out, begin, end):
    row = x[0]
    for n in range(begin, end, 4):
        w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
        y0 = y1 = y2 = y3 = np.float32(0)
        for k in range(w.shape[1]):
            a = row[k]
            y0 += widen(w0[k]) * a
            y1 += widen(w1[k]) * a
            y2 += widen(w2[k]) * a
            y3 += widen(w3[k]) * a
        out[0, n], out[0, n + 1], out[0, n + 2], out[0, n + 3] = y0, y1, y2, y3


@compiled(SIGNATURE, fastmath=REORDER)
def two_rows(x, w, out, begin, end):
    x0, x1 = x[0], x[1]
    for n in range(begin, end, 4):
        w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
        y00 = y01 = y02 = y03 = y10 = y11 = y12 = y13 = np.float32(0)
        for k in range(w.shape[1]):
            a, b = x0[k], x1[k]
            v = widen(w0[k])
            y00, y10 = y00 + v * a, y10 + v * b
            v = widen(w1[k])
            y01, y11 = y01 + v * a, y11 + v * b
            v = widen(w2[k])
            y02, y12 = y02 + v * a, y12 + v * b
            v = widen(w3[k])
            y03, y13 = y03 + v * a, y13 + v * b
        out[0, n], out[0, n + 1], out[0, n + 2], out[0, n + 3] = y00, y01, y02, y03
        out[1, n], out[1, n + 1], out[1, n + 2], out[1, n + 3] = y10, y11, y12, y13


@compiled(SIGNATURE, fastmath=REORDER)
def four_rows(x, w, out, begin, end):
    """The number of rows of x is a multiple of four. The block of w stays in the cache while x passes by."""
    for n in range(begin, end, 4):
        w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
        for t in range(0, len(x), 4):
            x0, x1, x2, x3 = x[t], x[t + 1], x[t + 2], x[t + 3]
            y00 = y01 = y02 = y03 = y10 = y11 = y12 = y13 = np.float32(0)
            y20 = y21 = y22 = y23 = y30 = y31 = y32 = y33 = np.float32(0)
            for k in range(w.shape[1]):
                a, b, c, d = x0[k], x1[k], x2[k], x3[k]
                v = widen(w0[k])
                y00, y10, y20, y30 = y00 + v * a, y10 + v * b, y20 + v * c, y30 + v * d
                v = widen(w1[k])
                y01, y11, y21, y31 = y01 + v * a, y11 + v * b, y21 + v * c, y31 + v * d
                v = widen(w2[k])
                y02, y12, y22, y32 = y02 + v * a, y12 + v * b, y22 + v * c, y32 + v * d
                v = widen(w3[k])
                y03, y13, y23, y33 = y03 + v * a, y13 + v * b, y23 + v * c, y33 + v * d
            out[t, n], out[t, n + 1], out[t, n + 2], out[t, n + 3] = y00, y01, y02, y03
            out[t + 1, n], out[t + 1, n + 1], out[t + 1, n + 2], out[t + 1, n + 3] = y10, y11, y12, y13
            out[t + 2, n], out[t + 2, n + 1], out[t + 2, n + 2], out[t + 2, n + 3] = y20, y21, y22, y23
            out[t + 3, n], out[t + 3, n + 1], out[t + 3, n + 2], out[t + 3, n + 3] = y30, y31, y32, y33
