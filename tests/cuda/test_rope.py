"""Both kernels of RoPE and the cache write agree with complex rotations in float64."""

import numpy as np
import pytest

from llama3.config import ModelConfig
from llama3.cuda.arrays import LayerCache, RopeTable, Rows
from llama3.cuda.launch import Kernel
from llama3.cuda.rope import rope
from llama3.model.rope import rope_table
from tests.cuda.kernel_checks import assert_close, bfloat16, random

MAX_LEN = 8192
POSITIONS = [0, 1, 63, 64, 65, 8191]


def rope_naive(device, qkv, table, rows, q, cache):
    T, n_heads, head_dim = q.shape
    n_kv_heads = cache.k.shape[1]
    sizes = [np.int32(n) for n in (T, n_heads, n_kv_heads, head_dim, MAX_LEN)]
    args = [qkv, table.cos, table.sin, rows.positions, rows.slots, q, cache.k, cache.v, *sizes]
    threads = T * (n_heads + 2 * n_kv_heads)
    device.launch(Kernel("rope.cu", "rope_naive"), (-(-threads // 64),), (64,), args)


def rotated(x, position):
    """The complex number a + i b times e^(i angle), in float64; x (T, heads, head_dim)."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * 500_000.0 ** (-np.arange(half) / half)
    x = x.astype(np.float64)
    pair = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([pair.real, pair.imag], axis=-1)


@pytest.mark.parametrize("kernel", [rope, rope_naive])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 1, 64), (4, 2, 128), (3, 3, 64), (1, 1, 128)])
def test_rotates_queries_and_keys_and_stores_keys_and_values(
    device, in_every_order, kernel, n_heads, n_kv_heads, head_dim
):
    positions = np.array([*POSITIONS, 100], np.int32)
    slots = np.array([1, 0, 1, 0, 1, 0, 1], np.int32)  # (T,), of two slots
    qkv = random(head_dim, len(positions), n_heads + 2 * n_kv_heads, head_dim)
    config = ModelConfig(n_heads * head_dim, 1, n_heads, n_kv_heads, head_dim, 64, 100, rope_theta=500_000.0)
    table = rope_table(config, MAX_LEN)
    before = np.full((2, n_kv_heads, MAX_LEN, head_dim), 7, bfloat16)

    def run():
        uploaded_table = RopeTable(*(device.upload(array) for array in table))
        q = device.alloc((len(positions), n_heads, head_dim), bfloat16)
        cache = LayerCache(device.upload(before), device.upload(before))
        kernel(
            device, device.upload(qkv), uploaded_table, Rows(device.upload(positions), device.upload(slots)), q, cache
        )
        k, v = device.download(cache.k), device.download(cache.v)
        written = slots, slice(None), positions
        found = device.download(q), k[written], v[written]  # (T, heads, head_dim) each
        k[written], v[written] = 7, 7
        assert k.tobytes() == v.tobytes() == before.tobytes(), "wrote to other positions than the rows'"
        return found

    q, k, v = in_every_order(run)
    assert_close(q, rotated(qkv[:, :n_heads], positions))
    assert_close(k, rotated(qkv[:, n_heads : n_heads + n_kv_heads], positions))
    assert np.array_equal(v, qkv[:, n_heads + n_kv_heads :])


@pytest.mark.parametrize("kernel", [rope, rope_naive])
def test_a_padding_row_writes_nothing(device, kernel):
    config = ModelConfig(128, 1, 2, 1, 64, 64, 100)
    table = RopeTable(*(device.upload(array) for array in rope_table(config, MAX_LEN)))
    before = np.full((1, 1, MAX_LEN, 64), 7, bfloat16)
    cache = LayerCache(device.upload(before), device.upload(before))
    q = device.upload(np.full((2, 2, 64), 7, bfloat16))
    rows = Rows(device.upload(np.array([-1, -1], np.int32)), device.upload(np.zeros(2, np.int32)))
    kernel(device, device.upload(random(0, 2, 4, 64)), table, rows, q, cache)
    for array in (q, cache.k, cache.v):
        assert (device.download(array) == bfloat16(7)).all()
