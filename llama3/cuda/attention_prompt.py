"""Attention of the many rows of prompts (kernels/attention_prompt.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel

THREADS = 128
TILE = 64  # rows of one sequence that a block takes, as in the kernel


def kernel(head_dim: int) -> Kernel:
    shared = 5 * TILE * (head_dim + 8) * 2  # queries, and two of keys and of values
    return Kernel("attention_prompt.cu", "attention_prompt", (f"HEAD_DIM={head_dim}",), max_shared=shared)


def tiles(counts: tuple[int, ...], starts: tuple[int, ...], slots: tuple[int, ...], first_row: int = 0) -> np.ndarray:
    """The rows of each sequence, from position `starts` on, in pieces of 64 at most; row `first_row` is the first.

    -> (n_tiles, 4) int32: first row, number of rows, position of the first row, slot.
    """
    pieces = []
    row = first_row
    for count, start, slot in zip(counts, starts, slots):
        pieces += [(row + i, min(TILE, count - i), start + i, slot) for i in range(0, count, TILE)]
        row += count
    return np.array(pieces, np.int32).reshape(-1, 4)


def attention_prompt(device: Device, q: Array, k_cache: Array, v_cache: Array, tiles: Array, out: Array) -> None:
    """Each row attends to positions 0 to its own, which `rope` has written.

    q, out (T, n_heads, head_dim) bfloat16; caches (slots, n_kv_heads, max_len, head_dim) bfloat16; tiles as above.
    """
    _, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = k_cache.shape
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, k_cache.shape)
    assert out.shape == q.shape and k_cache.shape == v_cache.shape, (out.shape, q.shape, k_cache.shape, v_cache.shape)
    prompt_kernel = kernel(head_dim)
    args = [q, k_cache, v_cache, tiles, out, *(np.int32(n) for n in (n_heads, n_kv_heads, max_len))]
    grid = (len(tiles), n_heads)
    device.launch(prompt_kernel, grid, (THREADS,), args, shared=prompt_kernel.max_shared, dependent=True)
