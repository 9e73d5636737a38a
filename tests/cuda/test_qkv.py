import numpy as np
import pytest

from llama3.config import ModelConfig
from llama3.cuda.linear import norm_then_linear
from llama3.cuda.qkv import norm_qkv_rope
from llama3.cuda.rope import rope
from llama3.model.rope import rope_table
from tests.cuda.kernel_checks import assert_close, bfloat16, random
from tests.cuda.test_linear import EPS, by_output, norm_of, product
from tests.cuda.test_rope import MAX_LEN, turned

SLOT = 1  # of two


def inputs(n_heads, n_kv_heads, head_dim, width):
    """The stream, the norm's weights, wqkv, and rope's table."""
    config = ModelConfig(n_heads * head_dim, 1, n_heads, n_kv_heads, head_dim, 64, 100, rope_theta=500_000.0)
    wqkv = random(3, (n_heads + 2 * n_kv_heads) * head_dim, width, scale=width**-0.5)
    return random(1, 1, width, dtype=np.float32), random(2, width), wqkv, rope_table(config, MAX_LEN)


def fused(device, x, norm, wqkv, rest):
    norm_qkv_rope(device, x, norm, EPS, wqkv, *rest)


def one_by_one(device, x, norm, wqkv, rest):
    heads, head_dim = len(wqkv) // rest[3].shape[2], rest[3].shape[2]
    h, qkv = device.alloc(x.shape, bfloat16), device.alloc((1, heads, head_dim), bfloat16)
    norm_then_linear(device, x, norm, EPS, wqkv, h, qkv.reshape(1, -1))
    rope(device, qkv, *rest)


def launched(device, function, given, n_kv_heads, head_dim, position):
    """Queries, and both caches of two slots, which start as sevens."""
    x, norm, wqkv, table = given
    n_heads = len(wqkv) // head_dim - 2 * n_kv_heads
    there = [device.upload(array) for array in (x, norm, wqkv)]
    q = device.upload(np.full((1, n_heads, head_dim), 7, bfloat16))
    k, v = (device.upload(np.full((2, n_kv_heads, MAX_LEN, head_dim), 7, bfloat16)) for _ in range(2))
    row = [device.upload(np.array([number], np.int32)) for number in (position, SLOT)]
    function(device, *there, (tuple(device.upload(array) for array in table), *row, q, k, v))
    return tuple(device.download(array) for array in (q, k, v))


@pytest.mark.parametrize("position", [0, 1, 8191])
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim", "width"), [(4, 1, 64, 320), (2, 2, 128, 1088)])
def test_is_the_norm_the_product_and_rope(device, in_every_order, n_heads, n_kv_heads, head_dim, width, position):
    given = inputs(n_heads, n_kv_heads, head_dim, width)
    q, k, v = in_every_order(lambda: launched(device, fused, given, n_kv_heads, head_dim, position))
    qkv = product(norm_of(device, given[0], given[1]), given[2]).reshape(1, -1, head_dim)
    at = np.array([position])
    assert_close(by_output(q), by_output(turned(qkv[:, :n_heads], at)))
    assert_close(by_output(k[SLOT, :, position]), by_output(turned(qkv[:, n_heads : n_heads + n_kv_heads], at)))
    assert_close(by_output(v[SLOT, :, position]), by_output(qkv[:, n_heads + n_kv_heads :]))
    for found, other in zip((q, k, v), launched(device, one_by_one, given, n_kv_heads, head_dim, position)):
        assert_close(by_output(found), by_output(other))
    for cache in (k, v):
        cache[SLOT, :, position] = 7
        assert (cache == bfloat16(7)).all(), "written where no row stands"


def test_a_row_that_is_nobodys_writes_nothing(device):
    for array in launched(device, fused, inputs(2, 1, 64, 128), 1, 64, -1):
        assert (array == bfloat16(7)).all()
