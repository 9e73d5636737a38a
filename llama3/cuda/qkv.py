"""Queries, keys and values of a single row: norm, product, rotation and cache write in one launch (kernels/qkv.cu)."""

import numpy as np

from llama3.cuda.arrays import LayerCache, NormInput, RopeTable, Rows
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel
from llama3.cuda.linear import kernel_weights, opted_in
from llama3.cuda.quantised import Matrix
from llama3.cuda.rope import checked_sizes

THREADS = 256
OUTPUTS = THREADS // 32  # of a block: each warp computes one


def norm_qkv_rope(
    device: Device, source: NormInput, wqkv: Matrix, table: RopeTable, rows: Rows, q: Array, cache: LayerCache
) -> None:
    """`norm_then_linear` with wqkv, then `rope`, for a single row.

    source.x (1, dim); wqkv ((n_heads + 2 * n_kv_heads) * head_dim, dim); q (1, n_heads, head_dim) bfloat16.
    """
    T, n_heads, n_kv_heads, head_dim, max_len = checked_sizes(table, rows, q, cache)
    x, norm, width = source.x, source.weight, source.x.shape[1]
    n_out = (n_heads + 2 * n_kv_heads) * head_dim
    assert T == len(x) == 1 and wqkv.shape == (n_out, width), (x.shape, wqkv.shape, q.shape, cache.k.shape)
    assert norm.shape == (width,) and width % 64 == 0, (norm.shape, x.shape)
    assert x.dtype == np.float32, x.dtype
    weights, defines, shared = kernel_weights(wqkv)
    arrays = [weights, x, norm, table.cos, table.sin, rows.positions, rows.slots, q, cache.k, cache.v]
    sizes = [np.int32(n) for n in (n_heads, n_kv_heads, head_dim, max_len, width)]
    args = [*arrays, *sizes, np.float32(source.eps)]
    kernel = Kernel("qkv.cu", "norm_qkv_rope", defines, opted_in(shared))
    device.launch(kernel, (n_out // OUTPUTS,), (THREADS,), args, shared=shared or 2 * width, dependent=True)
