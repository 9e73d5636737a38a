"""Attention of single rows over the cache, in splits of 256 positions (kernels/attention.cu)."""

from dataclasses import dataclass

import numpy as np

from llama3.cuda.arrays import LayerCache, Rows
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

THREADS = 128
SPLIT = 256  # positions of a split, as in the kernel
MAX_SPLITS = 256  # of a row, as in the kernel
MAX_GROUP = 8  # query heads of a block: half of the rows of an mma, as in the kernel
BLOCKS = 2048  # of a launch, about; if there are more splits, a block takes several, one after another


@dataclass(frozen=True)
class SplitWorkspace:
    """What each split of a row leaves for the block that ends last, which combines the splits."""

    partial_out: Array  # (rows, n_heads, n_splits, head_dim) float32
    stats: Array  # (rows, n_heads, n_splits, 2) float32: the largest score and the sum of the weights
    arrivals: Array  # (rows, n_heads) uint32: the ended blocks of each group of heads; 0 before and after a launch

    @classmethod
    def alloc(cls, device: Device, rows: int, n_heads: int, head_dim: int, max_len: int) -> "SplitWorkspace":
        """Memory for launches of up to `rows` rows, each of a sequence of up to max_len positions."""
        n_splits = -(-max_len // SPLIT)
        partial_out = device.alloc((rows, n_heads, n_splits, head_dim), np.float32)
        stats = device.alloc((rows, n_heads, n_splits, 2), np.float32)
        return cls(partial_out, stats, device.upload(np.zeros((rows, n_heads), np.uint32)))


def kernel(name: str, head_dim: int, group: int) -> Kernel:
    """The kernel for heads of 64 or 128 channels and `group` query heads a block."""
    return Kernel("attention.cu", name, (f"HEAD_DIM={head_dim}", f"GROUP={group}"))


def heads_per_block(n_heads: int, n_kv_heads: int) -> int:
    """The largest divisor of a kv head's number of query heads that one block can serve."""
    group = n_heads // n_kv_heads
    return max(n for n in range(1, MAX_GROUP + 1) if group % n == 0)


def attention(device: Device, q: Array, cache: LayerCache, rows: Rows, workspace: SplitWorkspace, out: Array) -> None:
    """Each row attends to the positions from 0 to its own, whose key and value `rope` has written already.

    q, out (T, n_heads, head_dim) bfloat16; workspace: for at least T rows and exactly the cache's max_len.
    """
    T, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = cache.k.shape
    n_splits = -(-max_len // SPLIT)
    partial_out, stats, arrivals = workspace.partial_out[:T], workspace.stats[:T], workspace.arrivals[:T]
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, cache.k.shape)
    assert out.shape == q.shape and cache.k.shape == cache.v.shape, (out.shape, q.shape, cache.k.shape, cache.v.shape)
    assert partial_out.shape == (T, n_heads, n_splits, head_dim), (partial_out.shape, q.shape, max_len)
    assert n_splits <= MAX_SPLITS, max_len
    group = heads_per_block(n_heads, n_kv_heads)
    sizes = [np.int32(n) for n in (n_heads, n_kv_heads, max_len)]
    args = [q, cache.k, cache.v, rows.positions, rows.slots, partial_out, stats, arrivals, out, *sizes]
    groups = n_heads // group
    grid = (groups, min(n_splits, max(1, BLOCKS // (groups * T))), T)
    device.launch(kernel("attention", head_dim, group), grid, (THREADS,), args, dependent=True)
