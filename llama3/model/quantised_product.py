"""Products by a quantised matrix without computing its entries: zero and scale change a sum of codes.

    y[i] = sum over groups g:  scale[i, g] * (sum of code[i, j] * x[j]  -  zero[i, g] * sum of x[j])  (both over j in g)

`QuantisedMatrix.rows` spends its time in passes over float32 arrays. Here each code is passed over once, to convert it,
before BLAS multiplies. With one scale a row, integers of 8 bits are all that `linear` needs, so a product costs what it
costs in bfloat16, with half the bytes to read.

A byte with two codes of 4 bits is even + 16 * odd. Instead of putting the codes side by side, which takes more passes,
the bytes and their lower halves are multiplied:

    even * a + odd * b  =  byte * (b / 16) + even * (a - b / 16)
"""

from collections.abc import Callable, Iterator

import numpy as np

from llama3.model.linear import linear

FEW = 8  # rows of x; with more of them and of groups, entries pay off
TWO_120 = np.float32(2.0**120)
OfRows = Callable[[int, int], np.ndarray]


def multiply_by_row(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """x (T, n_in) float32, codes (n_out, n_in) integers, scale and zero (n_out, 1) or (1, 1) float32 -> (T, n_out)"""
    y = linear(x, codes)  # (T, len(codes))
    y -= x.sum(axis=1, keepdims=True) * zero.T
    y *= scale.T
    return y


def multiply_few(
    x: np.ndarray, out: np.ndarray, codes: np.ndarray, bits: int, scale: OfRows, zero: OfRows, tiles: Iterator[slice]
) -> None:
    """x (T, n_in) float32, out (T, n_out): compute the columns of out that `tiles` names.

    codes: as in `QuantisedMatrix`. scale(begin, end): of these rows, (end - begin, groups) float32; zero: the same, or
    (1, 1) if it is one for all. The groups are all equally wide: an even number of columns, if there are 4 bits.
    """
    (T, n_in), groups = x.shape, scale(0, 1).shape[1]
    by_group = x.reshape(T, groups, n_in // groups).transpose(1, 2, 0)  # (groups, n_in // groups, T)
    sums_of_x = by_group.sum(axis=1)[:, None]  # (groups, 1, T)
    whole, lower = np.ascontiguousarray(by_group), None  # what the bytes are multiplied by, and their lower halves
    if bits == 4:
        whole = by_group[:, 1::2] / 16
        lower = by_group[:, ::2] - whole
    empty: np.ndarray = np.empty((0, 0))
    values = halves = sums = more = empty  # made once: new memory costs more than what is done there
    for rows in tiles:
        tile = codes[rows, : n_in * bits // 8]  # (rows.stop - rows.start, n_in * bits // 8)
        if values.shape != tile.shape:
            values, halves = np.empty(tile.shape, np.float32), np.empty(tile.shape, np.uint8)
            sums, more = np.empty((2, groups, len(tile), T), np.float32)
        of_groups = values.reshape(len(tile), groups, -1).transpose(1, 0, 2)
        to_float32(tile, values)
        np.matmul(of_groups, whole, out=sums)
        if lower is not None:
            values[:] = np.bitwise_and(tile, 15, out=halves)
            sums += np.matmul(of_groups, lower, out=more)
        sums -= zero(rows.start, rows.stop).T[:, :, None] * sums_of_x
        out[:, rows] = np.einsum("git,gi->ti", sums, scale(rows.start, rows.stop).T)


def to_float32(codes: np.ndarray, values: np.ndarray) -> None:
    if codes.dtype.kind in "iu":
        values[:] = codes
    else:
        float8_values(codes, values)


def float8_values(codes: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """float8_e4m3fn -> float32, exactly, and several times as fast as `astype`. out: the array for them.

    The bits of exponent and mantissa move to where float32 has them. Its exponent has a bias of 127 and not of 7, so
    the number is 2^120 times too small, which a product makes good, even below the normal numbers.
    """
    values = np.empty(codes.shape, np.float32) if out is None else out
    bits, words = codes.view(np.int8), values.view(np.int32)
    if bits.min(initial=0) == -1 or bits.max(initial=0) == 0x7F:  # NaN, which has no such place
        values[:] = codes
        return values
    words[:] = bits
    words *= 1 << 20  # a shift, which NumPy does more slowly
    words &= np.int32(-0x78100000)  # 0x87F00000: the sign, and 7 bits in their new place
    values *= TWO_120
    return values
