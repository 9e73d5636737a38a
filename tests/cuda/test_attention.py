"""Attention of single rows: the kernels agree with softmax in float64, and a row's bits do not depend on other rows."""

import numpy as np
import pytest

from llama3.cuda import attention as cuda
from llama3.cuda.arrays import LayerCache, Rows
from tests.cuda.emulator.device import EmulationError
from tests.cuda.emulator.guarded_memory import allocation_of
from tests.cuda.kernel_checks import assert_close, bfloat16, random

POSITIONS = [0, 1, 15, 16, 63, 64, 65, 255, 256, 300]
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


@pytest.mark.parametrize("blocks", [1, 30])
def test_the_number_of_blocks_does_not_matter(device, in_every_order, monkeypatch, blocks):
    """A block that takes several splits of a row, one after another, computes the bits that several blocks compute."""
    arguments = inputs([300, 700, -1, 5], 4, 1, 128, 800)
    one_each = attention(device, *arguments)
    monkeypatch.setattr(cuda, "BLOCKS", blocks)
    assert np.array_equal(in_every_order(lambda: attention(device, *arguments)), one_each, equal_nan=True)


def test_weights_keep_more_than_the_8_bits_of_bfloat16(device):
    """The values of a split are added up with weights of 16 bits, so the sum is far closer than bfloat16's 2e-3."""
    q, k, v, positions, slots = inputs([300], 4, 1, 128, 512)
    workspace = cuda.SplitWorkspace.alloc(device, 1, 4, 128, 512)
    attention(device, q, k, v, positions, slots, workspace)
    found, stats = device.download(workspace.partial_out)[0], device.download(workspace.stats)[0]
    for split, part in enumerate((slice(0, 256), slice(256, 301))):
        scores = k[0, 0, part].astype(np.float64) @ q[0].astype(np.float64).T / np.sqrt(128)  # (positions, heads)
        weights = np.exp(scores - scores.max(axis=0))
        np.testing.assert_allclose(stats[:, split, 0], scores.max(axis=0), rtol=1e-5)
        np.testing.assert_allclose(stats[:, split, 1], weights.sum(axis=0), rtol=1e-5)
        values = weights.T @ v[0, 0, part].astype(np.float64)
        error = np.linalg.norm(found[:, split] - values, axis=-1) / np.linalg.norm(values, axis=-1)
        assert error.max() < 2e-5, error


def test_scores_that_are_not_numbers_are_not_hidden(device):
    q, k, v, positions, slots = inputs([40, 300], 4, 1, 128, 320)
    k[0, 0, 33, 7] = np.nan
    found = attention(device, q, k, v, positions, slots).astype(np.float32)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_a_position_that_the_predecessor_writes_may_not_be_read(emulated):
    """attention reads its positions before it waits; the emulation would notice a predecessor that writes them."""
    q, k, v, positions, slots = inputs([3], 4, 1, 128, 16)
    workspace = cuda.SplitWorkspace.alloc(emulated, 1, 4, 128, 16)
    out = emulated.alloc(q.shape, bfloat16)
    q, k, v, positions, slots = (emulated.upload(array) for array in (q, k, v, positions, slots))
    emulated._in_flight = [allocation_of(array) for array in (q, k, v)]
    cuda.attention(emulated, q, LayerCache(k, v), Rows(positions, slots), workspace, out)
    emulated._in_flight = [allocation_of(positions)]
    with pytest.raises(EmulationError, match=r"before griddepcontrol\.wait"):
        cuda.attention(emulated, q, LayerCache(k, v), Rows(positions, slots), workspace, out)


def test_sharp_scores(device):
    """One key outweighs all others by exp(100) and more: nothing overflows, and the result is that key's value."""
    q, k, v, positions, slots = inputs([300], 4, 1, 128, 320)
    k[0, 0, 17] = (q[0, 0].astype(np.float32) * 10).astype(bfloat16)
    assert_close(attention(device, q, k, v, positions, slots), expected(q, k, v, positions, slots))


def test_a_row_does_not_see_its_neighbours_or_how_long_the_cache_is(device):
    q, k, v, positions, slots = inputs(POSITIONS, 4, 1, 128, 320)
    whole = attention(device, q, k, v, positions, slots)
    longer = [np.concatenate([array, np.full((2, 1, 500, 128), np.inf, bfloat16)], axis=2) for array in (k, v)]
    for row in (4, 9):
        alone = attention(device, q[row : row + 1], *longer, positions[row : row + 1], slots[row : row + 1])
        assert np.array_equal(alone[0], whole[row])


@pytest.mark.parametrize("kernel", [attention, attention_naive])
def test_a_padding_row_gets_zeros(device, kernel):
    arguments = inputs([65, -1, 3], 4, 1, 128, 70)
    found = kernel(device, *arguments)
    assert not found[1].astype(np.float32).any()
    q, k, v, positions, slots = arguments
    assert_close(found[[0, 2]], expected(q[[0, 2]], k, v, positions[[0, 2]], slots[[0, 2]]))
