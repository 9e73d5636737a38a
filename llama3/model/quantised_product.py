"""Products by a quantised matrix without computing its entries: zero and scale change a sum of codes.

    y[i] = sum over groups g:  scale[i, g] * (sum of code[i, j] * x[j]  -  zero[i, g] * sum of x[j])  (both over j in g)

`QuantisedMatrix.rows` spends its time in passes over float32 arrays. Here each code is passed over once, to convert it,
before BLAS multiplies. With one scale a row, integers of 8 bits are all that `linear` needs, so a product costs what it
costs in bfloat16, with half the bytes to read.

A byte with two codes of 4 bits is even + 16 * odd. Instead of putting the codes side by side, which takes more passes,
the bytes and their lower halves are multiplied:

    even * a + odd * b  =  byte * (b / 16) + even * (a - b / 16)

Scales and zeros are applied to a slice of several tiles at a time. Python's global lock makes threads wait for one
another between NumPy's operations, so few long operations are faster than many short ones.
"""

from collections.abc import Iterator

import numpy as np

from llama3.model.linear import linear
from llama3.model.threads import share

FEW = 8  # rows of x; with more of them and of groups, entries pay off
TILE = 2**18  # codes that are converted at a time: 1 MB as float32
TILES = 8  # of a slice
TWO_120 = np.float32(2.0**120)


def tile_height(n_in: int) -> int:
    """How many rows of so many columns are a tile. BLAS works in eights."""
    return max(8, TILE // n_in // 8 * 8)


def multiply_by_row(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """x (T, n_in) float32, codes (n_out, n_in) integers, scale and zero (n_out, 1) or (1, 1) float32 -> (T, n_out)"""
    y = linear(x, codes)  # (T, len(codes))
    y -= x.sum(axis=1, keepdims=True) * zero.T
    y *= scale.T
    return y


def multiply_few(x: np.ndarray, codes: np.ndarray, bits: int, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """x (T, n_in) float32, codes as in `QuantisedMatrix` -> (T, n_out)

    scale (n_out, groups) float32; zero: the same, or (1, 1) if it is one for all. The groups are all equally wide: an
    even number of columns, if there are 4 bits.
    """
    (T, n_in), (n_out, groups) = x.shape, scale.shape
    scale, zero = np.ascontiguousarray(scale.T), zero.T[:, :, None]  # group by group; zero ends in an axis for T
    by_group = x.reshape(T, groups, n_in // groups).transpose(1, 2, 0)  # (groups, n_in // groups, T)
    sums_of_x = by_group.sum(axis=1)[:, None]  # (groups, 1, T)
    whole, lower = np.ascontiguousarray(by_group), None  # what the bytes are multiplied by, and their lower halves
    if bits == 4:
        whole = by_group[:, 1::2] / 16
        lower = by_group[:, ::2] - whole
    height, width = tile_height(n_in), n_in * bits // 8
    out = np.empty((T, n_out), np.float32)

    def multiply(slices: Iterator[slice]) -> None:
        values, halves = np.empty((height, width), np.float32), np.empty((height, width), np.uint8)
        room, more = np.empty((2, groups, TILES * height, T), np.float32)
        for rows in slices:
            sums = room[:, : rows.stop - rows.start]
            for begin in range(rows.start, rows.stop, height):
                tile = codes[begin : min(begin + height, rows.stop), :width]
                n, at = len(tile), slice(begin - rows.start, begin - rows.start + len(tile))
                of_groups = values[:n].reshape(n, groups, -1).transpose(1, 0, 2)
                to_float32(tile, values[:n])
                np.matmul(of_groups, whole, out=sums[:, at])
                if lower is not None:
                    values[:n] = np.bitwise_and(tile, 15, out=halves[:n])
                    np.matmul(of_groups, lower, out=more[:, at])
            if lower is not None:
                sums += more[:, : sums.shape[1]]
            sums -= (zero if zero.size == 1 else zero[:, rows]) * sums_of_x
            out[:, rows] = np.einsum("git,gi->ti", sums, scale[:, rows])

    share(multiply, n_out, TILES * height)
    return out


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
