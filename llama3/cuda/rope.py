"""Rotary position embedding, and keys and values into the cache (kernels/rope.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel

ROPE = Kernel("rope.cu", "rope")
THREADS = 256


def rope(
    device: Device,
    qkv: Array,
    table: tuple[Array, Array],
    positions: Array,
    slots: Array,
    q: Array,
    k_cache: Array,
    v_cache: Array,
) -> None:
    """Turn the queries of qkv into q; turn its keys and put them, with the values, into one layer's caches.

    qkv (T, n_heads + 2 * n_kv_heads, head_dim) bfloat16; table: cosines and sines (max_seq_len, head_dim / 2) float32;
    positions, slots (T,) int32; q (T, n_heads, head_dim), caches (slots, n_kv_heads, max_len, head_dim) bfloat16.
    """
    rows, n_heads, n_kv_heads, head_dim, max_len = checked_sizes(table, positions, slots, q, k_cache, v_cache)
    assert qkv.shape == (rows, n_heads + 2 * n_kv_heads, head_dim), (qkv.shape, q.shape)
    sizes = [np.int32(n) for n in (rows, n_heads, n_kv_heads, head_dim, max_len)]
    threads = rows * (n_heads + 2 * n_kv_heads) * head_dim // 16
    args = [qkv, *table, positions, slots, q, k_cache, v_cache, *sizes]
    device.launch(ROPE, (-(-threads // THREADS),), (THREADS,), args, dependent=True)


def checked_sizes(
    table: tuple[Array, Array], positions: Array, slots: Array, q: Array, k_cache: Array, v_cache: Array
) -> tuple[int, int, int, int, int]:
    """(rows, n_heads, n_kv_heads, head_dim, max_len) of arrays that fit together: `rope`'s, and `norm_qkv_rope`'s."""
    rows, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = k_cache.shape
    assert head_dim % 16 == 0 and table[0].shape == table[1].shape, (q.shape, table[0].shape, table[1].shape)
    assert k_cache.shape == v_cache.shape and k_cache.shape[3] == head_dim, (k_cache.shape, v_cache.shape)
    assert positions.shape == slots.shape == (rows,), (positions.shape, slots.shape)
    return rows, n_heads, n_kv_heads, head_dim, max_len
