"""Attention of prompts, which have many rows of one sequence (kernels/attention_prompt.cu)."""

import numpy as np

from llama3.cuda.arrays import LayerCache
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

THREADS = 128
TILE = 64  # rows of one sequence that a block takes, as in the kernel


def kernel(head_dim: int) -> Kernel:
    # In bytes: one tile of queries, two of keys, two of values; each row is padded by 8 elements.
    shared = 5 * TILE * (head_dim + 8) * 2
    return Kernel("attention_prompt.cu", "attention_prompt", (f"HEAD_DIM={head_dim}",), max_shared=shared)


def tiles(counts: tuple[int, ...], starts: tuple[int, ...], slots: tuple[int, ...], first_row: int = 0) -> np.ndarray:
    """Cut the rows of each sequence into tiles of at most 64 rows.

    Sequence i has counts[i] rows, from position starts[i] on, in cache slot slots[i]. The sequences' rows follow one
    another from row `first_row` on. -> (n_tiles, 4) int32: first row, number of rows, position of the first row, slot.
    """
    out = []
    row = first_row
    for count, start, slot in zip(counts, starts, slots):
        out += [(row + i, min(TILE, count - i), start + i, slot) for i in range(0, count, TILE)]
        row += count
    return np.array(out, np.int32).reshape(-1, 4)


def attention_prompt(device: Device, q: Array, cache: LayerCache, tiles: Array, out: Array) -> None:
    """Each row attends to the positions from 0 to its own, whose key and value `rope` has written already.

    q, out (T, n_heads, head_dim) bfloat16; tiles (n_tiles, 4) int32, from the function `tiles`.
    """
    _, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = cache.k.shape
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, cache.k.shape)
    assert out.shape == q.shape and cache.k.shape == cache.v.shape, (out.shape, q.shape, cache.k.shape, cache.v.shape)
    prompt_kernel = kernel(head_dim)
    args = [q, cache.k, cache.v, tiles, out, *(np.int32(n) for n in (n_heads, n_kv_heads, max_len))]
    grid = (len(tiles), n_heads)
    device.launch(prompt_kernel, grid, (THREADS,), args, shared=prompt_kernel.max_shared, dependent=True)
