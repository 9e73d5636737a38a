"""Norm, product, rotation and cache write in one launch agree with float64, and with the launches one by one."""

import numpy as np
import pytest

from llama3.config import ModelConfig
from llama3.cuda.arrays import LayerCache, NormInput, RopeTable, Rows
from llama3.cuda.linear import norm_then_linear
from llama3.cuda.qkv import norm_qkv_rope
from llama3.cuda.rope import rope
from llama3.model.rope import rope_table
from tests.cuda.kernel_checks import assert_close, bfloat16, random
from tests.cuda.test_linear import EPS, by_output, norm_of, product
from tests.cuda.test_rope import MAX_LEN, rotated

SLOT = 1  # of the two slots 0 and 1


def inputs(n_heads, n_kv_heads, head_dim, width):
    """A row of the residual stream, the norm's weight, wqkv, and the table of cosines and sines."""
    config = ModelConfig(n_heads * head_dim, 1, n_heads, n_kv_heads, head_dim, 64, 100, rope_theta=500_000.0)
    wqkv = random(3, (n_heads + 2 * n_kv_heads) * head_dim, width, scale=width**-0.5)
    return random(1, 1, width, dtype=np.float32), random(2, width), wqkv, rope_table(config, MAX_LEN)


def one_by_one(device, source, wqkv, table, rows, q, cache):
    head_dim = q.shape[2]
    h, qkv = device.alloc(source.x.shape, bfloat16), device.alloc((1, len(wqkv) // head_dim, head_dim), bfloat16)
    norm_then_linear(device, source, wqkv, h, qkv.reshape(1, -1))
    rope(device, qkv, table, rows, q, cache)


def launched(device, function, arguments, n_kv_heads, head_dim, position):
    """Queries, and the keys and values of two slots; all of them are 7 before the launch."""
    x, norm, wqkv, table = arguments
    n_heads = len(wqkv) // head_dim - 2 * n_kv_heads
    source = NormInput(device.upload(x), device.upload(norm), EPS)
    q = device.upload(np.full((1, n_heads, head_dim), 7, bfloat16))
    k, v = (device.upload(np.full((2, n_kv_heads, MAX_LEN, head_dim), 7, bfloat16)) for _ in range(2))
    rows = Rows(*(device.upload(np.array([number], np.int32)) for number in (position, SLOT)))
    uploaded_table = RopeTable(*(device.upload(array) for array in table))
    function(device, source, device.upload(wqkv), uploaded_table, rows, q, LayerCache(k, v))
    return tuple(device.download(array) for array in (q, k, v))


@pytest.mark.parametrize("position", [0, 1, 8191])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim", "width"), [(4, 1, 64, 320), (2, 2, 128, 1088)])
def test_is_the_norm_the_product_and_rope(device, in_every_order, n_heads, n_kv_heads, head_dim, width, position):
    arguments = inputs(n_heads, n_kv_heads, head_dim, width)
    q, k, v = in_every_order(lambda: launched(device, norm_qkv_rope, arguments, n_kv_heads, head_dim, position))
    qkv = product(norm_of(device, arguments[0], arguments[1]), arguments[2]).reshape(1, -1, head_dim)
    at = np.array([position])
    assert_close(by_output(q), by_output(rotated(qkv[:, :n_heads], at)))
    assert_close(by_output(k[SLOT, :, position]), by_output(rotated(qkv[:, n_heads : n_heads + n_kv_heads], at)))
    assert_close(by_output(v[SLOT, :, position]), by_output(qkv[:, n_heads + n_kv_heads :]))
    for found, other in zip((q, k, v), launched(device, one_by_one, arguments, n_kv_heads, head_dim, position)):
        assert_close(by_output(found), by_output(other))
    for cache in (k, v):
        cache[SLOT, :, position] = 7
        assert (cache == bfloat16(7)).all(), "wrote to other positions than the rows'"


def test_a_padding_row_writes_nothing(device):
    for array in launched(device, norm_qkv_rope, inputs(2, 1, 64, 128), 1, 64, -1):
        assert (array == bfloat16(7)).all()
