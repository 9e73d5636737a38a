"""Attention of prompts, which have many rows of one sequence (attention_prompt.cu, attention_wgmma.cu in kernels/)."""

from typing import NamedTuple

import numpy as np

from llama3.cuda.arrays import LayerCache
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

HOPPER = 90  # the compute capability of H100 and H200


class PromptKernel(NamedTuple):
    kernel: Kernel
    threads: int  # of a block


def tile_rows(device: Device) -> int:
    """The most rows of a tile: 128, or 64 where a block has only 99 KB of shared memory (RTX 30, 40 and 50)."""
    return 64 if device.capability in (86, 89) or device.capability >= 120 else 128


def mma_kernel(rows: int, head_dim: int) -> PromptKernel:
    """For all GPUs."""
    # In bytes: one tile of queries, two of 64 keys, two of 64 values; each row is padded by 8 elements.
    shared = (rows + 4 * 64) * (head_dim + 8) * 2
    defines = (f"HEAD_DIM={head_dim}", f"ROWS={rows}")
    return PromptKernel(Kernel("attention_prompt.cu", "attention_prompt", defines, max_shared=shared), threads=128)


def wgmma_kernel() -> PromptKernel:
    """For Hopper, head_dim 128."""
    # In bytes: one tile of queries, two of keys, two of values, of 128 rows each; 1,024 because tiles are aligned so.
    shared = 5 * 128 * 128 * 2 + 1024
    kernel = Kernel("attention_wgmma.cu", "attention_wgmma", max_shared=shared, architecture="sm_90a")
    return PromptKernel(kernel, threads=256)


def kernels(device: Device, head_dim: int) -> list[PromptKernel]:
    """Those that run on this device, the fastest first."""
    found = [mma_kernel(tile_rows(device), head_dim)]
    return [wgmma_kernel(), *found] if device.capability == HOPPER and head_dim == 128 else found


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


def attention_prompt(
    device: Device, q: Array, cache: LayerCache, tiles: Array, out: Array, kernel: PromptKernel | None = None
) -> None:
    """Each row attends to the positions from 0 to its own, whose key and value `rope` has written already.

    q, out (T, n_heads, head_dim) bfloat16; tiles (n_tiles, 4) int32, from the function `tiles` for this device.
    kernel: one of `kernels`; the fastest by default.
    """
    _, n_heads, head_dim = q.shape
    _, n_kv_heads, max_len, _ = cache.k.shape
    assert head_dim in (64, 128) and n_heads % n_kv_heads == 0, (q.shape, cache.k.shape)
    assert out.shape == q.shape and cache.k.shape == cache.v.shape, (out.shape, q.shape, cache.k.shape, cache.v.shape)
    chosen, threads = kernel or kernels(device, head_dim)[0]
    args = [q, cache.k, cache.v, tiles, out, *(np.int32(n) for n in (n_heads, n_kv_heads, max_len))]
    grid = (n_heads, len(tiles))
    device.launch(chosen, grid, (threads,), args, shared=chosen.max_shared, dependent=True)
