"""The emulation catches every planted bug, each by its own check: the kernels of planted_bugs.cu, and bad launches."""

import gc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llama3.cuda.launch import Kernel
from tests.cuda.emulator.device import ORDERS, EmulationError

FILE = str(Path(__file__).parent / "planted_bugs.cu")
PRIMITIVES = str(Path(__file__).parent / "primitives.cu")


@pytest.fixture
def device(emulated):
    return emulated


def run(device, name, *args, threads=64, blocks=1, **options):
    device.launch(Kernel(FILE, name), (blocks,), (threads,), args, **options)


def floats(n=256):
    return np.random.default_rng(0).standard_normal(n).astype(np.float32)


# ---- access outside an array: unreadable pages, poison around it, copies of the memory beside a view ----


@pytest.mark.parametrize("n", [64, 65, 1000, 100_000, -1, -64, -100_000])
def test_a_write_outside_the_output(device, n):
    y = device.alloc((64,), np.float32)
    with pytest.raises(EmulationError, match=r"touched .* of argument 0|wrote outside"):
        run(device, "write_behind", y, np.int32(n), threads=1)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 61])
def test_a_write_outside_an_output_of_odd_size(device, n):
    y = device.alloc((n,), np.float32)
    with pytest.raises(EmulationError, match="outside its arrays"):
        run(device, "write_behind", y, np.int32(n), threads=1)


def test_a_write_before_the_output(device):
    with pytest.raises(EmulationError, match="outside its arrays"):
        run(device, "write_before", device.alloc((64,), np.float32), threads=1)


@pytest.mark.parametrize("n", [16, 16 + 31, -1, -16])
def test_a_write_beside_a_view(device, n):
    y = device.upload(np.zeros((4, 16), np.float32))
    with pytest.raises(EmulationError, match=r"wrote beside an array of shape \(16,\)"):
        run(device, "write_behind", y[1], np.int32(n), threads=1)


def test_a_read_outside_the_input(device):
    x, y = device.alloc((64,), np.float32), device.alloc((1,), np.float32)
    with pytest.raises(EmulationError, match="byte 256 of argument 0, which has 256"):
        run(device, "read_behind", x, y, np.int32(64), threads=1)


def test_an_output_that_is_never_written_is_poison(device):
    assert np.isnan(device.alloc((8,), np.float32)).all()
    assert np.isnan(device.alloc((8,), ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("n", [32, 40, 10_000])
def test_a_write_behind_dynamic_shared_memory(device, n):
    with pytest.raises(EmulationError, match="touched"):
        run(device, "write_behind_dynamic_shared", device.alloc((1,), np.float32), np.int32(n), threads=1, shared=128)


def test_a_write_behind_static_shared_memory(device):
    with pytest.raises(EmulationError, match=r"index 8 is outside the array 'float \[8\]'"):
        run(device, "write_behind_static_shared", device.alloc((1,), np.float32), np.int32(8), threads=1)


# ---- races: the result depends on the order of threads and blocks ----


@pytest.mark.parametrize("name", ["missing_barrier", "missing_second_barrier", "missing_warp_barrier", "unordered_sum"])
def test_a_missing_barrier_gives_different_bits_in_another_order(device, name):
    results = set()
    for order in ORDERS:
        with device.in_order(order):
            y = device.upload(np.zeros(64, np.float32))
            threads, blocks = {"missing_warp_barrier": (32, 1), "unordered_sum": (1, 64)}.get(name, (64, 1))
            run(device, name, device.upload(floats()), y, threads=threads, blocks=blocks)
            results.add(device.download(y).tobytes())
    assert len(results) == 3


# ---- divergence: every barrier and shuffle reports which threads are missing, and where they are ----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "barrier_for_some",
            r"in __syncthreads at line \d+, but \d+ threads have left the kernel|waits in __syncthreads",
        ),
        ("two_barriers", r"in __syncthreads at line \d+, while others are in __syncthreads at line \d+"),
        ("barrier_after_exit", r"have left the kernel|has left the kernel"),
        ("divergent_shuffle", r"waits for lane \d+, which has left the kernel|waits in __shfl_xor_sync"),
        ("two_shuffles", r"in __shfl_xor_sync at line \d+ .* while lane \d+ is in __shfl_xor_sync at line \d+"),
        ("not_in_its_mask", r"lane \d+ is not in its mask 0000ffff"),
        ("reads_outside_its_mask", r"lane 0 reads lane 16, which is not in the mask 0000ffff"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_divergence(device, name, message, order):
    with device.in_order(order), pytest.raises(EmulationError, match=message):
        run(device, name, device.alloc((64,), np.float32))


def test_a_mask_that_names_lanes_the_block_does_not_have(device):
    with pytest.raises(EmulationError, match="names lane 20, which this block does not have"):
        run(device, "shuffle_across_a_short_warp", device.alloc((20,), np.float32), threads=20)


# ---- asynchronous copies: the destination is poison until the wait ----


@pytest.mark.parametrize("name", ["missing_copy_wait", "waits_for_the_group_before"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_read_before_the_copy_wait_gets_poison(device, name, order):
    y = device.alloc((32,), np.float32)
    with device.in_order(order):
        run(device, name, device.upload(floats(128)), y, threads=32)
    assert np.isnan(device.download(y)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_is_only_visible_to_its_own_thread_until_a_barrier(device, order):
    y = device.alloc((32,), np.float32)
    with device.in_order(order):
        run(device, "missing_barrier_after_copy", device.upload(floats(128)), y, threads=32)
    assert np.isnan(device.download(y)).any()


def test_a_kernel_that_never_waits_for_its_copies(device):
    with pytest.raises(EmulationError, match=r"ends with 1 cp\.async copies that no thread waited for"):
        run(
            device,
            "never_waits_for_its_copies",
            device.upload(floats(128)),
            device.alloc((32,), np.float32),
            threads=32,
        )


# ---- alignment: checked by g++, and by the emulation where an instruction hides the access ----


def test_a_16_byte_access_off_by_8(device):
    half = device.upload(floats(64).astype(ml_dtypes.bfloat16))
    out = device.alloc((64,), np.float32)
    with pytest.raises(EmulationError, match=r"misaligned access to .*uint4.* 8 bytes past a multiple of 16"):
        run(device, "misaligned_load", half, out, threads=1)
    with pytest.raises(EmulationError, match=r"misaligned access to .*uint4.* 8 bytes past a multiple of 16"):
        run(device, "misaligned_store", half, threads=1)
    with pytest.raises(EmulationError, match=r"cp.async: misaligned source: 8 bytes"):
        run(device, "misaligned_copy", half, out, threads=1)
    with pytest.raises(EmulationError, match=r"ldmatrix: misaligned: 8 bytes"):
        run(device, "misaligned_matrix", out, threads=32, shared=512)


# ---- overlapping launches: memory that must not be touched yet is unreadable ----


@pytest.mark.parametrize("order", ORDERS)
def test_a_read_before_the_dependency_wait(device, order):
    x, y = device.upload(floats(64)), device.alloc((64,), np.float32)
    with device.in_order(order):
        device.launch(Kernel(PRIMITIVES, "increment"), (1,), (64,), [x])
        run(device, "read_before_the_wait", x, y)  # correct while no launch overlaps
        device.launch(Kernel(PRIMITIVES, "increment"), (1,), (64,), [x])
        with pytest.raises(EmulationError, match=r"before griddepcontrol.wait: byte .* of argument 0"):
            run(device, "read_before_the_wait", x, y, dependent=True)


def test_a_write_before_the_dependency_wait(device):
    x, y = device.upload(floats(64)), device.alloc((64,), np.float32)
    with pytest.raises(EmulationError, match=r"before griddepcontrol.wait: byte .* of argument 1"):
        run(device, "write_before_the_wait", x, y, dependent=True)


def test_an_overlapping_kernel_that_never_waits(device):
    x, y, elsewhere = (device.upload(floats(64)) for _ in range(3))
    with pytest.raises(EmulationError, match=r"ends without griddepcontrol\.wait"):
        run(device, "never_waits", x, y, dependent=True)
    device.launch(Kernel(PRIMITIVES, "after_the_wait"), (1,), (64,), [x, y, elsewhere], dependent=True)


def test_a_read_of_what_the_predecessors_predecessor_wrote(device):
    """The predecessor may have let this kernel start before it has waited for its own predecessor."""
    x, y, z = (device.upload(floats(64)) for _ in range(3))
    device.launch(Kernel(PRIMITIVES, "increment"), (1,), (64,), [x])
    device.launch(Kernel(PRIMITIVES, "after_the_wait"), (1,), (64,), [y, y, z], dependent=True)
    with pytest.raises(EmulationError, match=r"before griddepcontrol.wait: byte .* of argument 0"):
        run(device, "read_before_the_wait", x, device.alloc((64,), np.float32), dependent=True)


# ---- the launch ----


def test_64_kb_of_shared_memory_without_the_opt_in(device):
    y = device.alloc((1,), np.float32)
    with pytest.raises(ValueError, match="65536 bytes of shared memory, and max_shared is 0"):
        run(device, "write_behind_dynamic_shared", y, np.int32(0), threads=1, shared=64 * 1024)
    opted_in = Kernel(FILE, "write_behind_dynamic_shared", max_shared=64 * 1024)
    device.launch(opted_in, (1,), (1,), [y, np.int32(0)], shared=64 * 1024)
    with pytest.raises(EmulationError, match="bytes of shared memory"):  # more than sm_89 and sm_120 have
        opted_in = Kernel(FILE, "write_behind_dynamic_shared", max_shared=128 * 1024)
        device.launch(opted_in, (1,), (1,), [y, np.int32(0)], shared=128 * 1024)


def test_too_many_registers_for_the_threads(device):
    copy = Kernel(PRIMITIVES, "copy")
    x, y = device.upload(floats(1024)), device.alloc((1024,), np.float32)
    device.registers[copy.file, copy.name, copy.defines] = 72
    device.launch(copy, (2,), (512,), [x, y, np.int32(1024)])
    with pytest.raises(EmulationError, match="1024 threads of 72 registers do not fit an SM"):
        device.launch(copy, (1,), (1024,), [x, y, np.int32(1024)])


def test_more_threads_than_the_launch_bounds(device):
    tensor_product = Kernel(PRIMITIVES, "tensor_product")
    with pytest.raises(EmulationError, match="64 threads a block; its launch bounds say 32"):
        device.launch(tensor_product, (1,), (64,), [np.int32(0)] * 3)


@pytest.mark.parametrize("value", [3, 3.0, True, None])
def test_an_untyped_scalar(device, value):
    with pytest.raises(TypeError, match="append_at, argument 2"):
        run(device, "append_at", device.upload(floats(1)), device.alloc((8,), np.float32), value, threads=1)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), np.float64(3)])
def test_a_scalar_of_another_type(device, value):
    with pytest.raises(EmulationError, match=f"argument 2: {value.dtype.name}; it takes int32"):
        run(device, "append_at", device.upload(floats(1)), device.alloc((8,), np.float32), value, threads=1)


def test_a_strided_array(device):
    square = device.alloc((8, 8), np.float32)
    for strided in (square.T, square[:, 1], square[::2]):
        with pytest.raises(ValueError, match="write_before, argument 0: the array is strided"):
            run(device, "write_before", strided, threads=1)


def test_an_array_of_another_type_or_of_the_host(device):
    with pytest.raises(EmulationError, match=r"argument 0: int32\*; it takes float32\*"):
        run(device, "write_before", device.alloc((8,), np.int32), threads=1)
    with pytest.raises(TypeError, match="argument 0: ndarray"):
        run(device, "write_before", np.zeros(8, np.float32), threads=1)
    with pytest.raises(EmulationError, match="2 arguments; it takes"):
        run(device, "write_before", device.alloc((8,), np.float32), np.int32(1), threads=1)


# ---- graphs ----


def test_a_position_baked_into_a_graph(device):
    """A replay uses the recorded scalar again, but reads a position from an array as it is then."""
    x, baked, counted = device.upload(floats(1)), device.alloc((8,), np.float32), device.alloc((8,), np.float32)
    position = device.upload(np.zeros(1, np.int32))
    with device.capture() as graph:
        run(device, "append_at", x, baked, np.int32(0), threads=1)
        device.launch(Kernel(PRIMITIVES, "append"), (1,), (1,), [x, counted, position])
    for _ in range(8):
        device.replay(graph)
    assert np.isnan(device.download(baked)[1:]).all()
    assert np.array_equal(device.download(counted), np.repeat(floats(1), 8))


def test_anything_but_a_launch_inside_a_capture(device):
    x = device.alloc((4, 64), ml_dtypes.bfloat16)
    out = device.alloc((4, 4), np.float32)
    forbidden = [
        lambda: device.alloc((1,), np.float32),
        lambda: device.upload(floats(1)),
        lambda: device.download(x),
        lambda: device.sync(),
        lambda: device.gemm(x, x, out),
    ]
    for call in forbidden:
        with device.capture(), pytest.raises(RuntimeError, match="inside a capture"):
            call()


def test_memory_that_was_freed_before_a_graph_is_replayed(device):
    x = device.alloc((4,), np.float32)
    with device.capture() as graph:
        device.launch(Kernel(PRIMITIVES, "increment"), (1,), (4,), [x])
    graph.keep.clear()  # the reference that keeps the array alive
    del x
    gc.collect()
    with pytest.raises(EmulationError, match="memory was freed"):
        device.replay(graph)


# ---- after an error ----


def test_an_error_leaves_the_device_usable(device):
    y = device.upload(np.zeros(64, np.float32))
    for name in ("barrier_for_some", "divergent_shuffle"):
        with pytest.raises(EmulationError):
            run(device, name, device.alloc((64,), np.float32))
    device.launch(Kernel(PRIMITIVES, "increment"), (1,), (64,), [y])
    assert (device.download(y) == 1).all()
