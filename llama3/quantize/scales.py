"""Rounds weights to codes of 8 or 4 bits: finds for each group the scale with the smallest squared error.

    entry = code * scale          code: a whole number from -2^(bits-1) to 2^(bits-1) - 1

A group is a whole row, or some neighbouring entries of one. If its largest entry gets the largest code, no entry is cut
off, but the steps are coarse. A smaller scale has finer steps and cuts off the largest entries. Which is better depends
on the group, so several scales are tried. For the codes c of the best one, the scale is computed once more: the error
sum (w - s c)^2 is smallest at s = sum w c / sum c c. The codes of this scale are the result.
"""

import numpy as np

# The scales that are tried: with each, the largest entry is this many times the largest code, before it is cut off.
REACH = {
    8: np.linspace(1.0, 1.28, 8, dtype=np.float32),
    4: np.linspace(1.0, 1.6, 13, dtype=np.float32),
}
NOTHING = 1e-30  # a group without a larger entry gets codes of 0; its scale could not be inverted in float32


def quantise(w: np.ndarray, bits: int, width: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rounds the rows of a matrix. Groups of zeros get codes of zero. Every scale is positive.

    w: (n_out, n_in) float32 without NaN and infinity, n_in a multiple of width, the size of a group; dtype: of the
    scales -> codes (n_out, n_in) float32, whole numbers; scales (n_out, n_in / width) dtype. The codes are those that
    fit the scales after rounding to dtype.
    """
    assert w.dtype == np.float32 and w.shape[1] % width == 0, (w.dtype, w.shape, width)
    groups = w.reshape(-1, width)
    scale = _refine(groups, _search(groups, bits), bits)
    smallest = np.nextafter(np.zeros(1, dtype), np.ones(1, dtype)).astype(np.float32)
    rounded = np.maximum(scale, smallest).astype(dtype)
    codes = _codes(groups, 1 / rounded.astype(np.float32), bits)
    return codes.reshape(w.shape), rounded.reshape(len(w), -1)


def _search(w: np.ndarray, bits: int) -> np.ndarray:
    """The scale on the grid with the smallest squared error. w: (n_groups, width) -> (n_groups,) float32"""
    largest = np.maximum(w.max(axis=1), -w.min(axis=1))
    unit = np.where(largest > NOTHING, largest, 1) / (2 ** (bits - 1) - 1)
    best, least = unit.copy(), np.full(len(w), np.inf, np.float32)
    scaled, codes = np.empty_like(w), np.empty_like(w)
    for reach in REACH[bits]:
        scale = unit / reach
        np.multiply(w, (1 / scale)[:, None], out=scaled)
        _round(scaled, bits, out=codes)
        scaled -= codes
        error = np.einsum("ij,ij->i", scaled, scaled) * scale * scale
        better = error < least
        least[better], best[better] = error[better], scale[better]
    return best


def _refine(w: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The scale that fits the codes best which the given scale leads to. (n_groups,) -> (n_groups,)"""
    codes = _codes(w, 1 / scale, bits)
    squares = np.einsum("ij,ij->i", codes, codes)
    return np.where(squares > 0, np.einsum("ij,ij->i", w, codes) / np.maximum(squares, 1), scale)


def _codes(w: np.ndarray, inverse: np.ndarray, bits: int) -> np.ndarray:
    codes = w * inverse[:, None]
    return _round(codes, bits, out=codes)


def _round(scaled: np.ndarray, bits: int, out: np.ndarray) -> np.ndarray:
    np.rint(scaled, out=out)
    return np.clip(out, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, out=out)
