"""A few rows of x by a quantised matrix without computing its entries: a scale multiplies a sum of codes.

    y[i] = sum over groups g:  scale[i, g] * sum over j in g of (code[i, j] - zero[i, g]) * x[j]

`QuantisedMatrix.rows` spends its time in passes over float32 arrays. Here each code is passed over once, to convert it:
for 4 bits first those of the even columns and then those of the odd, so that no pass puts them side by side. Passes
over bytes are cheap. So the middle of the codes, which is nearly always the zero, is subtracted there. The rest of a
zero, if there is any, is subtracted from the sums:

    sum of (code - zero) * x  =  sum of (code - middle) * x  +  (middle - zero) * sum of x
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

FEW = 8  # rows of x; with more of them, entries pay off
TWO_120 = np.float32(2.0**120)


def middle(codes: np.ndarray, bits: int) -> int:
    """The code that `_values` makes 0."""
    return 8 if bits == 4 else 128 if codes.dtype == np.uint8 else 0


def multiply_few(
    x: np.ndarray,
    out: np.ndarray,
    codes: np.ndarray,
    bits: int,
    scale: Callable[[int, int], np.ndarray],
    offset: Callable[[int, int], np.ndarray] | None,
    tiles: Iterator[slice],
) -> None:
    """x (T, n_in) float32, out (T, n_out): compute the columns of out that `tiles` names.

    codes: as in `QuantisedMatrix`. scale(begin, end): of these rows, (end - begin, groups) float32, where a group is
    n_in / groups columns wide. offset(begin, end): middle - zero of the same; None: it is 0.
    """
    T, n_in = x.shape
    groups, n_parts = scale(0, 1).shape[1], 8 // bits
    by_group = x.reshape(T, groups, n_in // groups)  # (T, groups, n_in // groups)
    sums_of_x = by_group.sum(axis=2).T  # (groups, T)
    parts = [by_group[:, :, k::n_parts].transpose(1, 2, 0) for k in range(n_parts)]  # of 4 bits: even and odd columns
    parts = [part / 16 if bits == 4 else np.ascontiguousarray(part) for part in parts]  # `_values` gives 16 times codes
    space = _Space(np.empty((0, 0), np.float32), np.empty((0, 0), np.uint8), np.empty((0, 0), np.uint8))
    for rows in tiles:
        tile = codes[rows, : n_in // n_parts]  # (rows.stop - rows.start, n_in // n_parts)
        if space.floats.shape != tile.shape:
            space = _Space(*(np.empty(tile.shape, dtype) for dtype in (np.float32, np.uint8, np.uint8)))
        sums = np.zeros((groups, len(tile), T), np.float32)  # (groups, len(tile), T)
        for values, part in zip(_values(tile, bits, space), parts):
            sums += values.reshape(len(tile), groups, -1).transpose(1, 0, 2) @ part
        if offset:
            sums += offset(rows.start, rows.stop).T[:, :, None] * sums_of_x[:, None]
        sums *= scale(rows.start, rows.stop).T[:, :, None]
        out[:, rows] = sums.sum(axis=0).T


class _Space(NamedTuple):
    """Arrays of a tile's shape, used again for each tile: memory from the system costs more than what is done there."""

    floats: np.ndarray
    signed: np.ndarray
    half: np.ndarray


def _values(codes: np.ndarray, bits: int, space: _Space) -> Iterator[np.ndarray]:
    """Codes minus their middle, for float8 their values; 4 bits: times 16, first of the even columns, then of the odd.

    The array is overwritten when the next one is asked for.
    """
    signed: np.ndarray = codes
    if bits == 4:
        np.bitwise_xor(codes, 0x88, out=space.signed)  # now the halves are integers in two's complement
        np.multiply(space.signed, 16, out=space.half)  # a shift by 4, but NumPy's own is eight times as slow
        space.floats[:] = space.half.view(np.int8)
        yield space.floats
        signed = np.bitwise_and(space.signed, 0xF0, out=space.half).view(np.int8)
    elif codes.dtype == np.uint8:
        signed = np.bitwise_xor(codes, 0x80, out=space.signed).view(np.int8)
    elif codes.dtype != np.int8:
        yield float8_values(codes, space.floats)
        return
    space.floats[:] = signed
    yield space.floats


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
