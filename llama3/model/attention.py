"""Grouped-query attention of one sequence: n_heads queries, n_kv_heads keys and values (Ainslie et al. 2023).

softmax(q k^T / sqrt(head_dim)) v, where a query sees its own position and those before it. The queries are taken in
blocks, one kv head at a time, so that the scores of a long prompt never stand in memory all at once: with 8,192
positions of the 8B model they would fill 8.6 GB a layer, and a block of them fills 16 MB.
"""

import numpy as np

BLOCK = 128  # query positions at a time; the group's scores then stay in the CPU's cache


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Row i of q stands at position length - n + i: the new rows are the last ones.

    q (n, n_heads, head_dim); k, v (n_kv_heads, length, head_dim), positions 0 to length - 1 -> (n, n_heads * head_dim).
    """
    n, n_heads, head_dim = q.shape
    n_kv_heads, length, _ = k.shape
    group = n_heads // n_kv_heads
    start = length - n
    out = np.empty((n, n_kv_heads, group, head_dim), np.float32)
    q = q.reshape(n, n_kv_heads, group, head_dim) / np.sqrt(np.float32(head_dim))
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        seen = start + end  # keys that any query of this block may see
        future = np.triu(np.ones((end - begin, end - begin), bool), 1)[:, None]  # (block, 1, block): the last keys
        for head in range(n_kv_heads):
            queries = q[begin:end, head].reshape(-1, head_dim)  # (block * group, head_dim)
            scores = (queries @ k[head, :seen].T).reshape(-1, group, seen)  # (block, group, seen)
            np.copyto(scores[..., start + begin :], -np.inf, where=future)
            mixed = softmax(scores).reshape(-1, seen) @ v[head, :seen]  # (block * group, head_dim)
            out[begin:end, head] = mixed.reshape(-1, group, head_dim)
    return out.reshape(n, n_heads * head_dim)


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis. The largest entry is taken off first: exp of the rest cannot overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
