"""Used correctly, everything that the emulation offers does what the CUDA documentation says, in every order."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llama3.cuda.launch import Kernel
from tests.cuda.emulator import build

FILE = str(Path(__file__).parent / "primitives.cu")


@pytest.fixture(params=["own switch", "ucontext"])
def device(request, emulated, monkeypatch):
    """Both ways to switch fibers: our own on x86-64, ucontext on other processors."""
    emulated.kernels = ("EMULATOR_UCONTEXT",) if request.param == "ucontext" else ()
    return emulated


def kernel(device, name):
    return Kernel(FILE, name, device.kernels)


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 31, 64, 1024])
def test_threads_and_blocks_cover_the_array(device, threads, in_every_order):
    x = floats(1500)

    def run():
        y = device.alloc((1500,), np.float32)
        grid = (-(-1500 // threads),)
        device.launch(kernel(device, "copy"), grid, (threads,), [device.upload(x), y, np.int32(1500)])
        return device.download(y)

    assert np.array_equal(in_every_order(run), x)


@pytest.mark.parametrize("warps", [1, 3, 32])
def test_shuffles_and_barriers_add_up_a_block(device, warps, in_every_order):
    x = floats(5, 777)

    def run():
        y = device.alloc((5,), np.float32)
        device.launch(kernel(device, "block_sum"), (5,), (32 * warps,), [device.upload(x), y, np.int32(777)])
        return device.download(y)

    np.testing.assert_allclose(in_every_order(run), x.sum(axis=1, dtype=np.float64), rtol=1e-4, atol=1e-4)


def test_votes_and_integer_atomics_count(device, in_every_order):
    x = floats(10 * 64)

    def run():
        y = device.upload(np.zeros(1, np.int32))
        device.launch(kernel(device, "count_positive"), (10,), (64,), [device.upload(x), y])
        return device.download(y)

    assert in_every_order(run) == [(x > 0).sum()]


def test_parts_of_a_warp_shuffle_independently(device, in_every_order):
    x = np.random.default_rng(0).permutation(32).astype(np.int32)

    def run():
        y = device.alloc((4, 32), np.int32)
        device.launch(kernel(device, "shuffle_halves"), (1,), (32,), [device.upload(x), y])
        return device.download(y)

    lane = np.arange(32)
    expected = [
        x[np.where(lane < 16, lane ^ 1, lane ^ 2)],
        x[np.where(lane < 3, lane, lane - 3)],
        x[np.where(lane > 28, lane, lane + 3)],
        x[lane & 16],
    ]
    assert np.array_equal(in_every_order(run), expected)


def test_copies_fragments_and_tensor_cores_multiply_matrices(device, in_every_order):
    a, b = (floats(16, n).astype(ml_dtypes.bfloat16) for n in (16, 8))

    def run():
        y = device.alloc((16, 8), np.float32)
        device.launch(
            kernel(device, "tensor_product"), (1,), (32,), [device.upload(a), device.upload(b), y], shared=768
        )
        return device.download(y)

    np.testing.assert_allclose(in_every_order(run), a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_groups_of_copies_land_one_by_one(device, in_every_order):
    x = floats(3, 128)

    def run():
        y = device.alloc((3, 32), np.float32)
        device.launch(kernel(device, "pipeline"), (1,), (32,), [device.upload(x), y])
        return device.download(y)

    assert np.array_equal(in_every_order(run), [x[0, ::4], x[1, ::4], np.zeros(32)])


@pytest.mark.parametrize("dependent", [False, True])
def test_weights_may_be_read_before_the_predecessor_has_ended(device, dependent, in_every_order):
    weights, x = floats(2, 64)

    def run():
        uploaded = device.upload(x)
        y = device.alloc((64,), np.float32)
        device.launch(kernel(device, "increment"), (1,), (64,), [uploaded])
        args = [device.upload(weights), uploaded, y]
        device.launch(kernel(device, "after_the_wait"), (1,), (64,), args, dependent=dependent)
        return device.download(y)

    assert np.array_equal(in_every_order(run), (x + 1) + weights)


def test_a_graph_replays_what_was_recorded(device):
    x, out = device.upload(floats(1)), device.upload(np.zeros(8, np.float32))
    position = device.upload(np.zeros(1, np.int32))
    with device.capture() as graph:
        device.launch(kernel(device, "append"), (1,), (1,), [x, out, position])
        device.launch(kernel(device, "increment"), (1,), (1,), [x])
    assert not device.download(out).any() and not device.download(position).any()  # recorded, not run
    for _ in range(3):
        device.replay(graph)
    first = floats(1)
    assert np.array_equal(device.download(out)[:4], np.concatenate([first, first + 1, first + 1 + 1, [0]]))


def test_a_graph_keeps_its_arrays(device):
    with_array = device.upload(np.zeros(1, np.float32))
    with device.capture() as graph:
        device.launch(kernel(device, "increment"), (1,), (1,), [with_array])
    view = with_array[:]
    del with_array
    device.replay(graph)
    assert device.download(view) == [1]


@pytest.mark.parametrize("out_type", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm_multiplies_by_the_transposed_weights(device, out_type, accumulate):
    x, w = floats(5, 64).astype(ml_dtypes.bfloat16), floats(7, 64).astype(ml_dtypes.bfloat16)
    before = floats(5, 7).astype(out_type)
    out = device.upload(before)
    device.gemm(device.upload(x), device.upload(w), out, accumulate)
    expected = x.astype(np.float64) @ w.astype(np.float64).T + (before.astype(np.float64) if accumulate else 0)
    np.testing.assert_allclose(device.download(out).astype(np.float64), expected, rtol=1e-2, atol=1e-2)


def test_a_build_is_reused_until_a_header_changes(tmp_path, emulated):
    file = tmp_path / "kernel.cu"
    header = tmp_path / "amount.cuh"
    file.write_text(f'#include "{header}"\nextern "C" __global__ void add(float* x) {{ x[0] += AMOUNT; }}\n')
    for amount in (1, 2):
        header.write_text(f"#define AMOUNT {amount}\n")
        build.load.cache_clear(), build._library.cache_clear()
        x = emulated.upload(np.zeros(1, np.float32))
        emulated.launch(Kernel(str(file), "add"), (1,), (1,), [x])
        assert emulated.download(x) == [amount]
