"""Causal attention of one head as PyTorch's `scaled_dot_product_attention` computes it in bfloat16 or float16 on a CPU.

transformers calls it "sdpa", and takes it unless "eager" attention is asked for. Nothing is rounded before the product
with the values. There the weights are not probabilities yet: exp(score - highest score) is rounded, and the result is
divided by the sum of the exponentials, which are not rounded. (FlashAttention, Dao 2022, with blocks of keys.)
"""

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from llama3.parity.torch_sums import in_order, lane_sum, product

KEYS = 512  # of a block
LANES = 16  # of a vector of float32
# exp(x) = 2^(n + f), n whole and 0 <= f < 1. The bits of a float32 hold n and, for 2^f, f minus a correction, which is
# a polynomial in f: Malossi et al., "Fast Exponential Computation on SIMD Architectures" (2015). Off by 1e-4 at most.
CORRECTION = (-0.079204240219773236, -0.22433836478672356, 0.30354260500649682, 0.00010703434948458272)


def attend(q: Array, k: Array, v: Array, round_to: Callable[[Array], Array]) -> Array:
    """q, k, v (T, head_dim) float64, numbers of the dtype -> (T, head_dim) float64.

    round_to: rounds an array to numbers of the dtype.
    """
    T = len(q)
    rows = 256 if T >= 768 else 64 if T >= 192 else 32  # queries of a block
    blocks = [slice(begin, min(begin + rows, T)) for begin in range(0, T, rows)]
    return np.concatenate([_attend(q[b], k[: b.stop], v[: b.stop], round_to) for b in blocks])


def _attend(q: Array, k: Array, v: Array, round_to: Callable[[Array], Array]) -> Array:
    """q (n, head_dim), the last n of the T positions of k and v (T, head_dim) -> (n, head_dim) float64, rounded."""
    n, T, scale = len(q), len(k), np.float32(q.shape[1] ** -0.5)
    position = np.arange(T - n, T)[:, None]  # (n, 1)
    highest = np.full((n, 1), -np.inf, np.float32)
    total, out = np.zeros((n, 1), np.float32), np.zeros(q.shape, np.float32)
    for begin in range(0, T, KEYS):
        keys = slice(begin, min(begin + KEYS, T))
        scores = product(q, k[keys]).astype(np.float32) * scale  # (n, keys)
        scores[np.arange(keys.start, keys.stop) > position] = -np.inf
        before, highest = highest, np.maximum(highest, scores.max(axis=1, keepdims=True))  # (n, 1)
        weights = exponential(scores - highest)  # (n, keys)
        shrink = np.exp((before - highest).astype(np.float64)).astype(np.float32)  # (n, 1); 0 in the first block
        whole = weights.shape[1] // LANES * LANES
        sums = np.column_stack([lane_sum(weights[:, :whole]), weights[:, whole:]])
        total = in_order(sums, axis=1)[:, None] + shrink * total
        out = out * shrink + product(round_to(weights), v[keys].T).astype(np.float32)
    return round_to(out * (1 / total))


def exponential(x: Array) -> Array:
    """x (n, width) float32, at most 0 -> exp(x): fast and inexact in whole vectors of LANES, exact in what remains."""
    whole = x.shape[1] // LANES * LANES
    exact = np.exp(x[:, whole:].astype(np.float64)).astype(np.float32)
    return np.concatenate([fast_exponential(x[:, :whole]), exact], axis=1)


def fast_exponential(x: Array) -> Array:
    """x float32, at most 0 -> about exp(x), float32; 0 if exp(x) is below float32's normal numbers."""
    power = np.maximum(x, -88) * np.float32(np.log2(np.e))  # float32
    part = power - np.floor(power)
    correction = np.zeros_like(part)
    for c in CORRECTION:
        correction = (correction.astype(np.float64) * part + np.float32(c)).astype(np.float32)  # one rounding: FMA
    bits = ((power - correction).astype(np.float64) * 2.0**23 + 127 * 2.0**23).astype(np.float32).astype(np.int32)
    return np.where(x < np.log(np.finfo(np.float32).tiny), np.float32(0), bits.view(np.float32))
