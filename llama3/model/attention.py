"""Grouped-query attention of one sequence: n_heads queries share n_kv_heads keys and values (Ainslie et al. 2023).

softmax(q k^T / sqrt(head_dim)) v, where a query sees its own position and those before it. `plain.py` writes that down
directly. Here the queries are taken in blocks, one kv head at a time, so that the scores of a long prompt are never in
memory all at once: with 8,192 positions of the 8B model they would fill 8.6 GB a layer; a block of them fills 16 MB.
"""

from collections.abc import Iterator

import numpy as np

from llama3.model.threads import share

BLOCK, LARGE = 128, 2**15  # query positions at a time, for the CPU's cache; scores that are worth several threads


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q (n, n_heads, head_dim), the last n positions; k, v (n_kv_heads, length, head_dim), positions 0 to length - 1
    -> (n, n_heads * head_dim). Row i of q is at position length - n + i.
    """
    (n, n_heads, head_dim), (n_kv_heads, length, _) = q.shape, k.shape
    group = n_heads // n_kv_heads
    q = q.reshape(n, n_kv_heads, group, head_dim) / np.sqrt(np.float32(head_dim))
    out = np.empty(q.shape, np.float32)  # (n, n_kv_heads, group, head_dim)

    def attend(slices: Iterator[slice]) -> None:
        for heads in slices:
            for head in range(heads.start, heads.stop):
                out[:, head] = attend_with_head(q[:, head], k[head], v[head])

    share(attend, n_kv_heads, 1 if n * n_heads * length >= LARGE else n_kv_heads)
    return out.reshape(n, n_heads * head_dim)


def attend_with_head(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One kv head: q (n, group, head_dim), already divided; k, v (length, head_dim) -> (n, group, head_dim)"""
    group, head_dim = q.shape[1:]
    out, start = np.empty(q.shape, np.float32), len(k) - len(q)
    for begin in range(0, len(q), BLOCK):
        rows = slice(begin, min(begin + BLOCK, len(q)))
        block, visible = rows.stop - begin, start + rows.stop  # queries, and keys that at least one of them may see
        queries = q[rows].reshape(-1, head_dim)  # (block * group, head_dim)
        scores = (queries @ k[:visible].T).reshape(block, group, visible)  # (block, group, visible)
        future = np.triu(np.ones((block, block), bool), 1)[:, None]  # (block, 1, block): mask of the last `block` keys
        np.copyto(scores[..., start + begin :], -np.inf, where=future)
        heads = softmax(scores).reshape(-1, visible) @ v[:visible]  # (block * group, head_dim)
        out[rows] = heads.reshape(block, group, head_dim)
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis. The largest entry is subtracted first, so that exp cannot overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
