"""Attention of single rows over the cache, in splits (kernels/attention.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel

THREADS = 128
SPLIT = 256  # positions a block, as in the kernel
MAX_GROUP = 8  # query heads a block: more would not fit its registers


def kernel(name: str, head_dim: int, group: int) -> Kernel:
    """For heads of 64 or 128 channels and `group` query heads a block."""
    return Kernel("attention.cu", name, (f"HEAD_DIM={head_dim}", f"GROUP={group}"))


def heads_a_block(n_heads: int, n_kv_heads: int) -> int:
    """The most query heads of one kv head that a block can serve, and that leave no rest."""
    group = n_heads // n_kv_heads
    return max(n for n in range(1, MAX_GROUP + 1) if group % n == 0)


def new_workspace(device: Device, rows: int, n_heads: int, head_dim: int, max_len: int) -> tuple[Array, Array, Array]:
    """What a row's splits hand to the last of them, for up to `rows` rows of up to max_len positions."""
    n_splits = -(-max_len // SPLIT)
    mixed = device.alloc((rows, n_heads, n_splits, head_dim), np.float32)
    stats = device.alloc((rows, n_heads, n_splits, 2), np.float32)
    return mixed, stats, device.upload(np.zeros((rows, n_heads), np.uint32))


def attention(
    device: Device,
    q: Array,
    k_cache: Array,
    v_cache: Array,
    positions: Array,
    slots: Array,
    workspace: tuple[Array, Array, Array],
    out: Array,
) -> None:
    """Each row attends to positions 0 to its own, which `rope` has written.

    q, out (T, n_heads, head_dim) bfloat16; caches (slots, n_kv_heads, max_len, head_dim) bfloat16; positions, slots
    (T,) int32; workspace: of `new_workspace`, for at least T rows and just this max_len.
    """
    rows, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = k_cache.shape
    n_splits = -(-max_len // SPLIT)
    mixed, stats, tickets = (array[:rows] for array in workspace)
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, k_cache.shape)
    assert out.shape == q.shape and k_cache.shape == v_cache.shape, (out.shape, q.shape, k_cache.shape, v_cache.shape)
    assert mixed.shape == (rows, n_heads, n_splits, head_dim), (mixed.shape, q.shape, max_len)
    assert n_splits <= SPLIT, max_len  # the last block keeps their weights where those of its positions were
    group = heads_a_block(n_heads, n_kv_heads)
    sizes = [np.int32(n) for n in (n_heads, n_kv_heads, max_len)]
    args = [q, k_cache, v_cache, positions, slots, mixed, stats, tickets, out, *sizes]
    grid = (n_heads // group, n_splits, rows)
    device.launch(kernel("attention", head_dim, group), grid, (THREADS,), args, dependent=True)
