"""The stand-in for CuPy: `CupyDevice` works on it as on a GPU, and it refuses what CuPy or a GPU would refuse."""

import numpy as np
import pytest

from llama3.cuda.arrays import NormInput
from llama3.cuda.device import CupyDevice, bfloat16
from llama3.cuda.launch import Kernel
from llama3.cuda.linear import linear, norm_linear
from llama3.cuda.source import kernel_source
from llama3.errors import DeviceError
from tests.cuda.emulator.build import COMPILER, load
from tests.cuda.emulator.device import EmulatedDevice
from tests.cuda.stand_ins import cupy_module, emulated
from tests.cuda.stand_ins.card import Card, StandInError
from tests.cuda.stand_ins.kernel_text import kernels_of

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")
NOTHING = Kernel("probes.cu", "nothing")


@pytest.fixture
def card():
    card = Card()
    with cupy_module.installed(card):
        yield card


@needs_compiler
def test_a_device_on_the_stand_in_computes_what_the_emulated_device_computes():
    """By hand, by a graph, and by cuBLAS; with uploads, copies and views."""
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((n, 128), np.float32).astype(bfloat16) for n in (70, 24))

    def results(device):
        rows, matrix, norm = device.upload(x), device.upload(w), device.upload(np.ones(128, bfloat16))
        many, one, logits = (device.alloc(shape, np.float32) for shape in ((70, 24), (1, 24), (1, 24)))
        linear(device, rows, matrix, many)  # cuBLAS
        wide = device.upload(x[:1].astype(np.float32))

        def launch():
            linear(device, rows[3:4], matrix, one)
            norm_linear(device, NormInput(wide, norm, 1e-5), matrix, rows[:1], logits)

        launch()
        before = device.download(one)
        with device.capture() as graph:
            launch()
        device.copy(rows[4:5], into=rows[3:4])
        device.replay(graph)
        return [before, *(device.download(array) for array in (many, one, logits))]

    with emulated():
        found = results(CupyDevice())
    for ours, theirs in zip(found, results(EmulatedDevice()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_compiler
@pytest.mark.parametrize(
    ("file", "defines"),
    [("linear.cu", {}), ("qkv.cu", {}), ("rope.cu", {}), ("sampler.cu", {}), ("quantised.cu", {"WEIGHT": "Int4"})],
)
def test_the_text_of_a_kernel_tells_the_types_that_the_compiler_finds(file, defines):
    for name, text in kernels_of(kernel_source(file), defines).items():
        compiled = load(file, name, tuple(map("=".join, defines.items())))
        assert text.parameters == tuple(type_.removeprefix("const ") for type_ in compiled.parameters), name
        assert text.max_threads == compiled.max_threads, name


def test_a_launch_with_a_wrong_type_is_refused(card):
    device = CupyDevice()
    x, out = device.alloc((64,), bfloat16), device.alloc((1,), np.uint32)
    kernel = Kernel("probes.cu", "read_only")
    device.launch(kernel, (1,), (256,), [x, out, np.int64(8)])
    with pytest.raises(StandInError, match="read_only, argument 2: int32; it takes int64"):
        device.launch(kernel, (1,), (256,), [x, out, np.int32(8)])
    with pytest.raises(StandInError, match="read_only: 2 arguments; it takes bfloat16"):
        device.launch(kernel, (1,), (256,), [x, out])


def test_a_dependent_launch_in_a_capture_is_checked_like_any_other(card):
    device = CupyDevice()
    with device.capture() as graph:
        device.launch(NOTHING, (132,), (256,), [], dependent=True)
    device.replay(graph)
    with pytest.raises(StandInError, match="a block of"), device.capture():
        device.launch(NOTHING, (132,), (2048,), [], dependent=True)


def test_a_grid_or_a_block_that_no_gpu_takes_is_refused(card):
    device = CupyDevice()
    with pytest.raises(StandInError, match="no GPU takes a grid"):
        device.launch(NOTHING, (1, 1 << 16), (256,), [])
    with pytest.raises(StandInError, match="launch bounds say 1024"):
        device.launch(NOTHING, (1,), (1025,), [])


def test_a_kernel_that_does_not_exist_is_an_error_that_names_its_file(card):
    with pytest.raises(DeviceError, match=r"kernels/probes\.cu does not compile on this GPU: .*nobody"):
        CupyDevice().launch(Kernel("probes.cu", "nobody"), (1,), (1,), [])


def test_the_card_can_be_full_and_freed_memory_can_be_given_back(card):
    import cupy

    device = CupyDevice()
    large = device.alloc((60 << 30,), np.uint8)
    with pytest.raises(DeviceError, match="out of GPU memory: 32"):
        device.alloc((30 << 30,), np.uint8)
    del large
    assert card.cupy.live < card.cupy.reserved
    cupy.get_default_memory_pool().free_all_blocks()
    assert card.cupy.live == card.cupy.reserved
    device.alloc((70 << 30,), np.uint8)
    assert card.peak > 70 << 30
