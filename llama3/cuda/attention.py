"""Attention of single rows over the cache, in splits (kernels/attention.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel

THREADS = 128
SPLIT = 256  # positions a block, as in the kernel
MAX_GROUP = 8  # query heads a block: more would not fit its registers


def kernels(head_dim: int, group: int) -> tuple[Kernel, Kernel]:
    """`attention` and `attention_combine`, for heads of 64 or 128 channels and `group` query heads a block."""
    defines = (f"HEAD_DIM={head_dim}", f"GROUP={group}")
    return Kernel("attention.cu", "attention", defines), Kernel("attention.cu", "attention_combine", defines)


def heads_a_block(n_heads: int, n_kv_heads: int) -> int:
    """The most query heads of one kv head that a block can serve, and that leave no rest."""
    group = n_heads // n_kv_heads
    return max(n for n in range(1, MAX_GROUP + 1) if group % n == 0)


def new_workspace(device: Device, rows: int, n_heads: int, head_dim: int, max_len: int) -> tuple[Array, Array]:
    """What the splits hand to `attention_combine`, for up to `rows` rows of up to max_len positions."""
    n_splits = -(-max_len // SPLIT)
    mixed = device.alloc((rows, n_heads, n_splits, head_dim), np.float32)
    return mixed, device.alloc((rows, n_heads, n_splits, 2), np.float32)


def attention(
    device: Device,
    q: Array,
    k_cache: Array,
    v_cache: Array,
    positions: Array,
    slots: Array,
    workspace: tuple[Array, Array],
    out: Array,
) -> None:
    """Each row attends to positions 0 to its own, which `rope` has written.

    q, out (T, n_heads, head_dim) bfloat16; caches (slots, n_kv_heads, max_len, head_dim) bfloat16; positions, slots
    (T,) int32; workspace: of `new_workspace`, for at least T rows and just this max_len.
    """
    rows, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = k_cache.shape
    n_splits = -(-max_len // SPLIT)
    mixed, stats = (array[:rows] for array in workspace)
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, k_cache.shape)
    assert out.shape == q.shape and k_cache.shape == v_cache.shape, (out.shape, q.shape, k_cache.shape, v_cache.shape)
    assert mixed.shape == (rows, n_heads, n_splits, head_dim), (mixed.shape, q.shape, max_len)
    group = heads_a_block(n_heads, n_kv_heads)
    split_kernel, combine_kernel = kernels(head_dim, group)
    sizes = [np.int32(n) for n in (n_heads, n_kv_heads, max_len)]
    args = [q, k_cache, v_cache, positions, slots, mixed, stats, *sizes]
    device.launch(split_kernel, (n_heads // group, n_splits, rows), (THREADS,), args, dependent=True)
    args = [mixed, stats, positions, out, np.int32(n_splits)]
    device.launch(combine_kernel, (n_heads, rows), (head_dim,), args, dependent=True)
