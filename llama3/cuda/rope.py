"""Rotary position embedding, and the write of keys and values to the cache (kernels/rope.cu)."""

from typing import NamedTuple

import numpy as np

from llama3.cuda.arrays import LayerCache, RopeTable, Rows
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

ROPE = Kernel("rope.cu", "rope")
THREADS = 256


def rope(device: Device, qkv: Array, table: RopeTable, rows: Rows, q: Array, cache: LayerCache) -> None:
    """Rotate the queries of qkv into q. Rotate its keys and store them, with its values, in the layer's cache.

    qkv (T, n_heads + 2 * n_kv_heads, head_dim) bfloat16; q (T, n_heads, head_dim) bfloat16.
    """
    sizes = checked_sizes(table, rows, q, cache)
    heads = sizes.n_heads + 2 * sizes.n_kv_heads
    assert qkv.shape == (sizes.rows, heads, sizes.head_dim), (qkv.shape, q.shape)
    args = [qkv, table.cos, table.sin, rows.positions, rows.slots, q, cache.k, cache.v, *map(np.int32, sizes)]
    threads = sizes.rows * heads * sizes.head_dim // 16
    device.launch(ROPE, (-(-threads // THREADS),), (THREADS,), args, dependent=True)


class Sizes(NamedTuple):
    rows: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_len: int


def checked_sizes(table: RopeTable, rows: Rows, q: Array, cache: LayerCache) -> Sizes:
    """The sizes of arrays that `rope` and `norm_qkv_rope` take; asserts that the arrays fit together."""
    T, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = cache.k.shape
    assert head_dim % 16 == 0 and table.cos.shape == table.sin.shape, (q.shape, table.cos.shape, table.sin.shape)
    assert cache.k.shape == cache.v.shape and cache.k.shape[3] == head_dim, (cache.k.shape, cache.v.shape)
    assert rows.positions.shape == rows.slots.shape == (T,), (rows.positions.shape, rows.slots.shape)
    return Sizes(T, n_heads, n_kv_heads, head_dim, max_len)
