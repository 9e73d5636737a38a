"""Queries, keys and values of one row in one launch (kernels/qkv.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel, bfloat16
from llama3.cuda.rope import checked_sizes

NORM_QKV_ROPE = Kernel("qkv.cu", "norm_qkv_rope")
THREADS = 256
OUTPUTS = THREADS // 32  # a block's: one a warp


def norm_qkv_rope(
    device: Device,
    x: Array,
    norm: Array,
    eps: float,
    wqkv: Array,
    table: tuple[Array, Array],
    positions: Array,
    slots: Array,
    q: Array,
    k_cache: Array,
    v_cache: Array,
) -> None:
    """`norm_linear` by wqkv, then `rope`, of a single row.

    x (1, in) float32, norm (in,), wqkv ((n_heads + 2 * n_kv_heads) * head_dim, in) bfloat16; the others as for `rope`.
    """
    rows, n_heads, n_kv_heads, head_dim, max_len = checked_sizes(table, positions, slots, q, k_cache, v_cache)
    width = x.shape[1]
    n_out = (n_heads + 2 * n_kv_heads) * head_dim
    assert rows == len(x) == 1 and wqkv.shape == (n_out, width), (x.shape, wqkv.shape, q.shape, k_cache.shape)
    assert norm.shape == (width,) and width % 64 == 0, (norm.shape, x.shape)
    assert x.dtype == np.float32 and wqkv.dtype == bfloat16, (x.dtype, wqkv.dtype)
    sizes = [np.int32(n) for n in (n_heads, n_kv_heads, head_dim, max_len, width)]
    args = [wqkv, x, norm, *table, positions, slots, q, k_cache, v_cache, *sizes, np.float32(eps)]
    device.launch(NORM_QKV_ROPE, (n_out // OUTPUTS,), (THREADS,), args, shared=2 * width, dependent=True)
