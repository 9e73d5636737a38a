"""Attention of prompts agrees with softmax in float64 and with the naive kernel; chunks give the bits of one step.

The emulation runs the kernel for tiles of 64 and of 128 rows, and Hopper's kernel; a GPU runs its own.
"""

import numpy as np
import pytest

from llama3.cuda.arrays import LayerCache
from llama3.cuda.attention_prompt import attention_prompt, kernels, tile_rows, tiles
from tests.cuda.emulator.device import EmulatedDevice
from tests.cuda.kernel_checks import assert_close, bfloat16, random
from tests.cuda.test_attention import attention_naive

# Number of rows and first position of each sequence: short and odd ones, exactly a tile, one row more, a long past
RAGGED = ((1, 0), (3, 65), (64, 0), (65, 1), (16, 64), (130, 57))


CAPABILITY = {"64 rows": 89, "128 rows": 80, "wgmma": 90}  # of a GPU that runs this kernel


@pytest.fixture(params=[*CAPABILITY, pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "gpu":
        return request.getfixturevalue("gpu")
    emulated = request.getfixturevalue("emulated")
    emulated.capability = CAPABILITY[request.param]
    return emulated


def inputs(sequences, n_heads, n_kv_heads, head_dim, max_len):
    """Queries, and a cache with a slot for each sequence. All keys and values after a sequence's end are infinite."""
    counts, _ = zip(*sequences)
    q = random(1, sum(counts), n_heads, head_dim)
    k, v = random(2, 2, len(sequences), n_kv_heads, max_len, head_dim)
    for slot, (count, start) in enumerate(sequences):
        k[slot, :, start + count :] = v[slot, :, start + count :] = np.inf
    return q, k, v, sequences


def attention(device, q, k, v, sequences, kernel=None):
    counts, starts = zip(*sequences)
    out = device.alloc(q.shape, bfloat16)
    host_tiles = tiles(device, counts, starts, tuple(range(len(sequences))))
    q, k, v, prompt_tiles = (device.upload(array) for array in (q, k, v, host_tiles))
    attention_prompt(device, q, LayerCache(k, v), prompt_tiles, out, kernel)
    return device.download(out)


def expected(q, k, v, sequences):
    n_heads, head_dim = q.shape[1:]
    rows = []
    for slot, (count, start) in enumerate(sequences):
        end = start + count
        x = q[sum(map(len, rows)) :][:count].astype(np.float64)  # (count, n_heads, head_dim)
        keys, values = (np.repeat(a[slot, :, :end].astype(np.float64), n_heads // a.shape[1], axis=0) for a in (k, v))
        scores = np.einsum("thd,hsd->hts", x, keys) / np.sqrt(head_dim)
        scores[:, np.arange(end) > start + np.arange(count)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        rows.append(np.einsum("hts,hsd->thd", weights / weights.sum(axis=-1, keepdims=True), values))
    return np.concatenate(rows)


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(2, 1, 128), (2, 2, 64)])
def test_ragged_prompts_agree_with_float64(device, in_every_order, n_heads, n_kv_heads, head_dim):
    arguments = inputs(RAGGED, n_heads, n_kv_heads, head_dim, 200)
    found = in_every_order(lambda: attention(device, *arguments))
    assert_close(found, expected(*arguments))


def test_agrees_with_the_naive_kernel(device):
    sequences = ((3, 65), (20, 0))
    q, k, v, _ = inputs(sequences, 2, 2, 64, 80)
    positions = np.concatenate([start + np.arange(count, dtype=np.int32) for count, start in sequences]).astype(
        np.int32
    )
    slots = np.repeat(np.arange(2, dtype=np.int32), [count for count, _ in sequences])
    found = attention(device, q, k, v, sequences).astype(np.float64)
    naive = attention_naive(device, q, k, v, positions, slots).astype(np.float64)
    error = np.linalg.norm(found - naive, axis=-1) / np.linalg.norm(naive, axis=-1)
    assert error.max() <= 2**-7, error.max()  # both round to bf16, and this kernel rounds its weights, too


def test_the_last_rows_of_a_long_prompt(device):
    sequences = ((5, 8187),)
    arguments = inputs(sequences, 1, 1, 128, 8192)
    assert_close(attention(device, *arguments), expected(*arguments))


def test_a_prompt_in_chunks_gives_the_same_bits(device):
    q, k, v, sequences = inputs(((150, 0),), 2, 1, 128, 150)
    whole = attention(device, q, k, v, sequences)
    for begin, end in ((0, 37), (37, 130), (130, 150)):
        chunk = attention(device, q[begin:end], k, v, ((end - begin, begin),))
        assert np.array_equal(chunk, whole[begin:end])


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (3, 1), (4, 2)])
def test_random_prompts_after_random_pasts_agree_with_float64(device, n_heads, n_kv_heads):
    rng = np.random.default_rng(n_heads)
    sequences = tuple((int(count), int(start)) for count, start in rng.integers((1, 0), (150, 300), (2, 2)))
    arguments = inputs(sequences, n_heads, n_kv_heads, 128, 450)
    assert_close(attention(device, *arguments), expected(*arguments))


def test_every_kernel_of_a_device_computes_the_same(emulated):
    emulated.capability = 90
    arguments = inputs(((140, 20),), 1, 1, 128, 160)
    wgmma, mma = kernels(emulated, 128)
    assert (wgmma.kernel.architecture, mma.kernel.architecture) == ("sm_90a", "")
    found = [attention(emulated, *arguments, kernel=kernel).astype(np.float64) for kernel in (wgmma, mma)]
    error = np.linalg.norm(found[0] - found[1], axis=-1) / np.linalg.norm(found[1], axis=-1)
    assert error.max() <= 2**-7, error.max()  # their steps end at other keys, so they round weights differently


@pytest.mark.parametrize(("capability", "head_dim"), [(80, 128), (89, 128), (90, 64), (100, 128), (120, 128)])
def test_only_hopper_uses_its_own_instructions(capability, head_dim):
    (only,) = kernels(EmulatedDevice(capability=capability), head_dim)
    assert only.kernel.file == "attention_prompt.cu"


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_tiles_cover_each_row_once_and_the_longest_come_first(capability):
    device = EmulatedDevice(capability=capability)
    counts, starts, slots = (300, 1, 64, 129), (7, 600, 0, 5), (3, 0, 2, 1)
    found = tiles(device, counts, starts, slots, first_row=2)
    _, n_rows, first_position, slot = found.T
    rows = [row for tile in found for row in range(tile[0], tile[0] + tile[1])]
    assert sorted(rows) == list(range(2, 2 + sum(counts))) and n_rows.max() == tile_rows(device)
    assert (np.diff(first_position + n_rows) <= 0).all()
    ends = dict(zip(slots, np.add(counts, starts)))
    assert {s: (first_position + n_rows)[slot == s].max() for s in slots} == ends
