"""Attention of prompts, which have many rows of one sequence (kernels/attention_prompt.cu)."""

import numpy as np

from llama3.cuda.arrays import LayerCache
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

THREADS = 128
KEYS = 64  # keys that a block takes at a time, as in the kernel


def tile_rows(device: Device) -> int:
    """The most rows of a tile: 128, or 64 where a block has only 99 KB of shared memory (RTX 30, 40 and 50)."""
    return 64 if device.capability in (86, 89) or device.capability >= 120 else 128


def kernel(rows: int, head_dim: int) -> Kernel:
    # In bytes: one tile of queries, two blocks of keys, two of values; each row is padded by 8 elements.
    shared = (rows + 4 * KEYS) * (head_dim + 8) * 2
    defines = (f"HEAD_DIM={head_dim}", f"ROWS={rows}")
    return Kernel("attention_prompt.cu", "attention_prompt", defines, max_shared=shared)


def tiles(
    device: Device, counts: tuple[int, ...], starts: tuple[int, ...], slots: tuple[int, ...], first_row: int = 0
) -> np.ndarray:
    """Cut the rows of each sequence into tiles.

    Sequence i has counts[i] rows, from position starts[i] on, in cache slot slots[i]. The sequences' rows follow one
    another from row `first_row` on. -> (n_tiles, 4) int32: first row, number of rows, position of the first row, slot.
    The tiles with the most keys come first. A GPU starts blocks in this order, so short ones fill the gaps at the end.
    """
    out, row, size = [], first_row, tile_rows(device)
    for count, start, slot in zip(counts, starts, slots):
        out += [(row + i, min(size, count - i), start + i, slot) for i in range(0, count, size)]
        row += count
    out.sort(key=lambda tile: tile[1] + tile[2], reverse=True)
    return np.array(out, np.int32).reshape(-1, 4)


def attention_prompt(device: Device, q: Array, cache: LayerCache, tiles: Array, out: Array) -> None:
    """Each row attends to the positions from 0 to its own, whose key and value `rope` has written already.

    q, out (T, n_heads, head_dim) bfloat16; tiles (n_tiles, 4) int32, from the function `tiles` for this device.
    """
    _, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = cache.k.shape
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, cache.k.shape)
    assert out.shape == q.shape and cache.k.shape == cache.v.shape, (out.shape, q.shape, cache.k.shape, cache.v.shape)
    prompt_kernel = kernel(tile_rows(device), head_dim)
    args = [q, cache.k, cache.v, tiles, out, *(np.int32(n) for n in (n_heads, n_kv_heads, max_len))]
    grid = (n_heads, len(tiles))
    device.launch(prompt_kernel, grid, (THREADS,), args, shared=prompt_kernel.max_shared, dependent=True)
