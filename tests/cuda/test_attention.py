"""Attention of single rows: the kernels agree with softmax in float64, and a row's bits do not depend on other rows."""

import numpy as np
import pytest

from llama3.cuda import attention as cuda
from llama3.cuda.arrays import LayerCache, Rows
from tests.cuda.kernel_checks import assert_close, bfloat16, random

POSITIONS = [0, 1, 63, 64, 65, 255, 256, 300]
# n_heads, n_kv_heads, head_dim: 1, 3, 4 and 7 query heads for each kv head, and 16, which need two blocks
HEADS = [(2, 2, 64), (4, 1, 128), (6, 2, 64), (7, 1, 64), (16, 1, 128)]


def inputs(positions, n_heads, n_kv_heads, head_dim, max_len, seed=0):
    """Queries, and a cache of two slots. All keys and values after a slot's last position are infinite."""
    slots = np.arange(len(positions), dtype=np.int32) % 2
    q = random(seed, len(positions), n_heads, head_dim)
    k, v = random(seed + 1, 2, 2, n_kv_heads, max_len, head_dim)
    for slot in range(2):
        last = max(p for p, s in zip(positions, slots) if s == slot) if slot in slots else -1
        k[slot, :, last + 1 :] = v[slot, :, last + 1 :] = np.inf
    return q, k, v, np.array(positions, np.int32), slots


def attention(device, q, k, v, positions, slots, workspace=None):
    workspace = workspace or cuda.SplitWorkspace.alloc(device, len(q), *q.shape[1:], k.shape[2])
    out = device.alloc(q.shape, bfloat16)
    q, k, v, positions, slots = (device.upload(array) for array in (q, k, v, positions, slots))
    cuda.attention(device, q, LayerCache(k, v), Rows(positions, slots), workspace, out)
    return device.download(out)


def attention_naive(device, q, k, v, positions, slots):
    rows, n_heads, head_dim = q.shape
    out = device.alloc(q.shape, bfloat16)
    kernel = cuda.kernel("attention_naive", head_dim, 1)
    arrays = [device.upload(array) for array in (q, k, v, positions, slots)]
    sizes = [np.int32(n) for n in (n_heads, k.shape[1], k.shape[2])]
    device.launch(kernel, (n_heads, rows), (head_dim,), [*arrays, out, *sizes])
    return device.download(out)


def expected(q, k, v, positions, slots):
    group = q.shape[1] // k.shape[1]
    out = np.empty(q.shape)
    for row, (position, slot) in enumerate(zip(positions, slots)):
        for head in range(q.shape[1]):
            keys = k[slot, head // group, : position + 1].astype(np.float64)
            scores = keys @ q[row, head].astype(np.float64) / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ v[slot, head // group, : position + 1].astype(np.float64)
    return out


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), HEADS)
def test_agrees_with_float64(device, in_every_order, n_heads, n_kv_heads, head_dim):
    arguments = inputs(POSITIONS, n_heads, n_kv_heads, head_dim, 320)
    assert_close(in_every_order(lambda: attention(device, *arguments)), expected(*arguments))


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(2, 2, 64), (4, 1, 128)])
def test_the_naive_kernel_agrees_with_float64(device, in_every_order, n_heads, n_kv_heads, head_dim):
    arguments = inputs([0, 1, 65], n_heads, n_kv_heads, head_dim, 66)
    assert_close(in_every_order(lambda: attention_naive(device, *arguments)), expected(*arguments))


@pytest.mark.parametrize("position", [8190, 8191])
def test_at_the_end_of_a_long_cache(device, in_every_order, position):
    arguments = inputs([position], 4, 1, 128, 8192)
    assert_close(in_every_order(lambda: attention(device, *arguments)), expected(*arguments))


def test_one_workspace_serves_launch_after_launch(device):
    """A launch leaves the workspace in the state that the next launch needs."""
    arguments = inputs(POSITIONS, 4, 1, 128, 320)
    workspace = cuda.SplitWorkspace.alloc(device, len(POSITIONS), 4, 128, 320)
    first = attention(device, *arguments, workspace)
    for _ in range(2):
        assert attention(device, *arguments, workspace).tobytes() == first.tobytes()


def test_sharp_scores(device):
    """One key outweighs all others by exp(100) and more: nothing overflows, and the result is that key's value."""
    q, k, v, positions, slots = inputs([300], 4, 1, 128, 320)
    k[0, 0, 17] = (q[0, 0].astype(np.float32) * 10).astype(bfloat16)
    assert_close(attention(device, q, k, v, positions, slots), expected(q, k, v, positions, slots))


def test_a_row_does_not_see_its_neighbours_or_how_long_the_cache_is(device):
    q, k, v, positions, slots = inputs(POSITIONS, 4, 1, 128, 320)
    whole = attention(device, q, k, v, positions, slots)
    longer = [np.concatenate([array, np.full((2, 1, 500, 128), np.inf, bfloat16)], axis=2) for array in (k, v)]
    for row in (2, 7):
        alone = attention(device, q[row : row + 1], *longer, positions[row : row + 1], slots[row : row + 1])
        assert np.array_equal(alone[0], whole[row])


@pytest.mark.parametrize("kernel", [attention, attention_naive])
def test_a_padding_row_gets_zeros(device, kernel):
    arguments = inputs([65, -1, 3], 4, 1, 128, 70)
    found = kernel(device, *arguments)
    assert not found[1].astype(np.float32).any()
    q, k, v, positions, slots = arguments
    assert_close(found[[0, 2]], expected(q[[0, 2]], k, v, positions[[0, 2]], slots[[0, 2]]))
