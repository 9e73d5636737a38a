"""Sums in float32, in the orders in which PyTorch adds up on a CPU with AVX-512.

Float32 sums in two orders differ in their last bits. After rounding to bfloat16 nearly all of them are equal; but where
a sum lies between two numbers of bfloat16, one order rounds it up and the other down. The layers that follow make other
differences of this one, until the logits are as far apart as those of two different roundings. So whoever wants to
reproduce an implementation in bfloat16 needs its order.

`product` is oneDNN's, for processors with AVX-512 and without instructions for bfloat16; the others are PyTorch's own.
"""

import numpy as np
from numpy import ndarray as Array

BLOCK, WHOLE = 768, 384  # terms of a product: see `block_size`
LARGE = 1 << 30  # multiplications; a product of more is left to BLAS, whose order is another
TILE = 1 << 14  # results that are added up at a time, so that they stay in the processor's nearest cache


def product(x: Array, w: Array) -> Array:
    """x (n, width) @ w (m, width).T, added up in float32 -> (n, m) float64.

    Each block of terms is added up, term after term, but of two neighbours the second one first, as Intel's instruction
    VDPBF16PS does; then it is added to the result.
    """
    a, b = (np.asarray(m, np.float32) for m in (x, w))
    width, block = a.shape[1], block_size(a.shape[1])
    total = np.zeros((len(a), len(b)), np.float32)
    for begin in range(0, width, block):
        end = min(begin + block, width)
        order = np.arange(begin, end)
        order[: (end - begin) // 2 * 2] = order[: (end - begin) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
        one, two = a[:, order], b[:, order]
        total += one @ two.T if a.size * len(b) > LARGE else _term_after_term(one, two)
    return total.astype(np.float64)


def block_size(width: int) -> int:
    """How many terms of a product oneDNN adds up before it adds them to the result: all, half of them, or BLOCK."""
    return width if width <= WHOLE else -(-width // 2) if width < 2 * BLOCK else BLOCK


def _term_after_term(a: Array, b: Array) -> Array:
    """a (n, width) @ b (m, width).T, float32, in the order of the columns."""
    columns_a, columns_b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    total = np.zeros((len(a), len(b)), np.float32)
    wide = max(TILE // len(a), 64)
    for begin in range(0, len(b), wide):
        tile = np.zeros_like(total[:, begin : begin + wide])  # (n, wide)
        term = np.empty_like(tile)
        for x, w in zip(columns_a, columns_b[:, begin : begin + wide]):
            np.multiply(x[:, None], w, out=term)
            tile += term
        total[:, begin : begin + wide] = tile
    return total


def row_sum(x: Array) -> Array:
    """x (n, width) float32 -> (n, 1) float32, as torch.sum adds up rows of 8 or more.

    Eight lanes have four sums each; 16 terms of such a sum are added up, then these sums. (A row of more than 8,192
    has one level more.)
    """
    n, width = x.shape
    vectors = x[:, : width // 8 * 8].reshape(n, -1, 8)
    fours = vectors[:, : width // 32 * 4].reshape(n, -1, 4, 8)
    whole = fours.shape[1] // 16 * 16
    blocks = in_order(fours[:, :whole].reshape(n, -1, 16, 4, 8), axis=2)  # (n, width // 512, 4, 8)
    sums = in_order(fours[:, whole:], axis=1) + in_order(blocks, axis=1)  # (n, 4, 8)
    first = in_order(np.concatenate([sums[:, :1], vectors[:, width // 32 * 4 :]], axis=1), axis=1)  # (n, 8)
    lanes = in_order(np.concatenate([first[:, None], sums[:, 1:]], axis=1), axis=1)  # (n, 8)
    rest = in_order(x[:, width // 8 * 8 :], axis=1)  # (n,)
    return in_order(np.column_stack([rest, lanes]), axis=1)[:, None]


def lane_sum(x: Array) -> Array:
    """x (n, width) float32 -> (n, 1) float32, as torch.softmax does: in 16 lanes, whose halves are added, and so on."""
    n, width = x.shape
    if width < 16:
        return in_order(x, axis=1)[:, None]
    lanes = in_order(np.pad(x, ((0, 0), (0, -width % 16))).reshape(n, -1, 16), axis=1)  # (n, 16)
    while lanes.shape[1] > 1:
        lanes = sum(np.split(lanes, 2, axis=1))  # type: ignore[assignment]
    return lanes


def in_order(x: Array, axis: int) -> Array:
    """The sum along an axis, from the first to the last. NumPy's own adds pairs, and those in another order."""
    if x.shape[axis] == 0:
        return np.zeros(x.shape[:axis] + x.shape[axis + 1 :], np.float32)
    return np.take(np.cumsum(x, axis=axis, dtype=np.float32), -1, axis=axis)
