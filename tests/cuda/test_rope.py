import numpy as np
import pytest

from llama3.config import ModelConfig
from llama3.cuda.device import Kernel
from llama3.cuda.rope import rope
from llama3.model.rope import rope_table
from tests.cuda.kernel_checks import assert_close, bfloat16, random

MAX_LEN = 8192
POSITIONS = [0, 1, 63, 64, 65, 8191]


def rope_naive(device, qkv, table, positions, slots, q, k_cache, v_cache):
    rows, n_heads, head_dim = q.shape
    n_kv_heads = k_cache.shape[1]
    sizes = [np.int32(n) for n in (rows, n_heads, n_kv_heads, head_dim, MAX_LEN)]
    args = [qkv, *table, positions, slots, q, k_cache, v_cache, *sizes]
    threads = rows * (n_heads + 2 * n_kv_heads)
    device.launch(Kernel("rope.cu", "rope_naive"), (-(-threads // 64),), (64,), args)


def turned(x, position):
    """The complex number a + i b times e^(i angle), in float64; x (T, heads, head_dim)."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * 500_000.0 ** (-np.arange(half) / half)
    x = x.astype(np.float64)
    pair = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([pair.real, pair.imag], axis=-1)


@pytest.mark.parametrize("kernel", [rope, rope_naive])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 1, 64), (4, 2, 128), (3, 3, 64), (1, 1, 128)])
def test_turns_queries_and_keys_and_stores_keys_and_values(
    device, in_every_order, kernel, n_heads, n_kv_heads, head_dim
):
    positions = np.array([*POSITIONS, 100], np.int32)
    slots = np.array([1, 0, 1, 0, 1, 0, 1], np.int32)  # (T,), of two
    qkv = random(head_dim, len(positions), n_heads + 2 * n_kv_heads, head_dim)
    config = ModelConfig(n_heads * head_dim, 1, n_heads, n_kv_heads, head_dim, 64, 100, rope_theta=500_000.0)
    table = rope_table(config, MAX_LEN)
    before = np.full((2, n_kv_heads, MAX_LEN, head_dim), 7, bfloat16)

    def run():
        table_there = tuple(device.upload(array) for array in table)
        q = device.alloc((len(positions), n_heads, head_dim), bfloat16)
        k_cache, v_cache = device.upload(before), device.upload(before)
        there = [device.upload(array) for array in (positions, slots)]
        kernel(device, device.upload(qkv), table_there, *there, q, k_cache, v_cache)
        k, v = device.download(k_cache), device.download(v_cache)
        rows = slots, slice(None), positions
        found = device.download(q), k[rows], v[rows]  # (T, heads, head_dim) each
        k[rows], v[rows] = 7, 7
        assert k.tobytes() == v.tobytes() == before.tobytes(), "written where no row stands"
        return found

    q, k, v = in_every_order(run)
    assert_close(q, turned(qkv[:, :n_heads], positions))
    assert_close(k, turned(qkv[:, n_heads : n_heads + n_kv_heads], positions))
    assert np.array_equal(v, qkv[:, n_heads + n_kv_heads :])


@pytest.mark.parametrize("kernel", [rope, rope_naive])
def test_a_row_that_is_nobodys_writes_nothing(device, kernel):
    config = ModelConfig(128, 1, 2, 1, 64, 64, 100)
    table = [device.upload(array) for array in rope_table(config, MAX_LEN)]
    before = np.full((1, 1, MAX_LEN, 64), 7, bfloat16)
    k_cache, v_cache = device.upload(before), device.upload(before)
    q = device.upload(np.full((2, 2, 64), 7, bfloat16))
    positions, slots = device.upload(np.array([-1, -1], np.int32)), device.upload(np.zeros(2, np.int32))
    kernel(device, device.upload(random(0, 2, 4, 64)), table, positions, slots, q, k_cache, v_cache)
    for array in (q, k_cache, v_cache):
        assert (device.download(array) == bfloat16(7)).all()
