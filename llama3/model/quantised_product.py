"""A few rows of x by a quantised matrix without computing its entries: a scale multiplies a sum of codes.

    y[i] = sum over groups g:  scale[i, g] * sum over j in g of (code[i, j] - zero[i, g]) * x[j]

`QuantisedMatrix.rows` spends its time in passes over float32 arrays. Here each code is passed over once, to convert it:
for 4 bits first those of the even columns and then those of the odd, so that no pass puts them side by side. Passes
over bytes are cheap. So the middle of the codes, which is nearly always the zero, is subtracted there. The rest of a
zero, if there is any, is subtracted from the sums:

    sum of (code - zero) * x  =  sum of (code - middle) * x  +  (middle - zero) * sum of x
"""

from collections.abc import Callable, Iterator

import numpy as np

FEW = 8  # rows of x; with more of them, entries pay off
TWO_120 = np.float32(2.0**120)


def middle(codes: np.ndarray, bits: int) -> int:
    """The code that `_signed` makes 0."""
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
    parts = [part / 16 if bits == 4 else np.ascontiguousarray(part) for part in parts]  # `_signed` gives 16 times codes
    buffer = np.empty((0, 0), np.float32)
    for rows in tiles:
        tile = codes[rows, : n_in // n_parts]  # (rows.stop - rows.start, n_in // n_parts)
        if buffer.shape != tile.shape:
            buffer = np.empty(tile.shape, np.float32)
        sums = np.zeros((groups, len(tile), T), np.float32)  # (groups, len(tile), T)
        for signed, part in zip(_signed(tile, bits), parts):
            buffer[:] = signed
            sums += buffer.reshape(len(tile), groups, -1).transpose(1, 0, 2) @ part
        if offset:
            sums += offset(rows.start, rows.stop).T[:, :, None] * sums_of_x[:, None]
        sums *= scale(rows.start, rows.stop).T[:, :, None]
        out[:, rows] = sums.sum(axis=0).T


def _signed(codes: np.ndarray, bits: int) -> list[np.ndarray]:
    """Codes minus their middle, for float8 their values; 4 bits: times 16, of the even columns and of the odd."""
    if bits == 4:
        codes = codes ^ 0x88  # now the two halves are integers in two's complement
        return [(codes << 4).view(np.int8), (codes & 0xF0).view(np.int8)]
    if codes.dtype == np.uint8:
        return [(codes ^ 0x80).view(np.int8)]
    return [codes] if codes.dtype == np.int8 else [float8_values(codes)]


def float8_values(codes: np.ndarray) -> np.ndarray:
    """float8_e4m3fn -> float32, exactly, and ten times as fast as `astype`.

    The bits of exponent and mantissa move to where float32 has them. Its exponent has a bias of 127 and not of 7, so
    the number is 2^120 times too small, which a product makes good, even below the normal numbers.
    """
    signed = codes.view(np.int8)
    if (signed & 0x7F).max(initial=0) == 0x7F:  # NaN, which has no such place
        return codes.astype(np.float32)
    words = signed.astype(np.int32)
    words <<= 20
    words &= np.int32(-0x78100000)  # 0x87F00000: the sign, and 7 bits in their new place
    values = words.view(np.float32)
    values *= TWO_120
    return values
