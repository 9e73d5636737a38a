"""Grouped-query attention of one sequence: n_heads queries share n_kv_heads keys and values (Ainslie et al. 2023).

softmax(q k^T / sqrt(head_dim)) v, where a query sees its own position and those before it. `plain.py` writes that down
directly. Here the queries are taken in blocks, one kv head at a time, so that the scores of a long prompt are never in
memory all at once: with 8,192 positions of the 8B model they would fill 8.6 GB a layer; a block of them fills 16 MB.
"""

import numpy as np

BLOCK = 128  # query positions at a time; the scores of one group of heads then stay in the CPU's cache


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q (n, n_heads, head_dim), the last n positions; k, v (n_kv_heads, length, head_dim), positions 0 to length - 1
    -> (n, n_heads * head_dim). Row i of q is at position length - n + i.
    """
    n, n_heads, head_dim = q.shape
    n_kv_heads, length, _ = k.shape
    group = n_heads // n_kv_heads
    start = length - n
    out = np.empty((n, n_kv_heads, group, head_dim), np.float32)
    q = q.reshape(n, n_kv_heads, group, head_dim) / np.sqrt(np.float32(head_dim))
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        block = end - begin
        visible = start + end  # keys that at least one query of this block may see
        future = np.triu(np.ones((block, block), bool), 1)[:, None]  # (block, 1, block): mask of the last `block` keys
        for head in range(n_kv_heads):
            queries = q[begin:end, head].reshape(-1, head_dim)  # (block * group, head_dim)
            scores = (queries @ k[head, :visible].T).reshape(-1, group, visible)  # (block, group, visible)
            np.copyto(scores[..., start + begin :], -np.inf, where=future)
            heads = softmax(scores).reshape(-1, visible) @ v[head, :visible]  # (block * group, head_dim)
            out[begin:end, head] = heads.reshape(-1, group, head_dim)
    return out.reshape(n, n_heads * head_dim)


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis. The largest entry is subtracted first, so that exp cannot overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
