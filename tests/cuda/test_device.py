"""Opening a GPU, and the messages if that fails; launches and memory through a fake CuPy.

The fake can be absent, without a driver, or with an old GPU.
"""

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from llama3.cuda.dependent_launch import driver_for
from llama3.cuda.device import BACKENDS, CupyDevice, Graph, memory_rate, open_device
from llama3.cuda.launch import Kernel
from llama3.cuda.linear import max_few
from llama3.cuda.source import kernel_source
from llama3.errors import DeviceError
from llama3.resources import resource
from tests.cuda.emulator.device import EmulatedDevice


class DriverError(RuntimeError):
    pass


def fake_cupy(monkeypatch, count, capability="90"):
    def get_device_count():
        if count is None:
            raise DriverError("cudaErrorInsufficientDriver")
        return count

    runtime = SimpleNamespace(getDeviceCount=get_device_count, CUDARuntimeError=DriverError)
    cuda = SimpleNamespace(runtime=runtime, Device=lambda index: SimpleNamespace(compute_capability=capability))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace())


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", ""])
def test_an_unknown_device_is_refused_by_name(name):
    with pytest.raises(DeviceError, match=f"device {name}: expected cuda, or cuda:1"):
        open_device(name)


def test_without_cupy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"needs CuPy .*pip install 'llama3\[cuda13\]'"):
        open_device("cuda")


def test_without_a_driver_it_says_so(monkeypatch):
    fake_cupy(monkeypatch, None)
    with pytest.raises(DeviceError, match=r"no usable NVIDIA driver \(cudaErrorInsufficientDriver\)"):
        open_device("cuda")


@pytest.mark.parametrize(("count", "message"), [(1, "has 1 GPU, counted from 0"), (2, "has 2 GPUs, counted from 0")])
def test_a_gpu_that_does_not_exist(monkeypatch, count, message):
    fake_cupy(monkeypatch, count)
    with pytest.raises(DeviceError, match=f"device cuda:{count}: this machine {message}"):
        open_device(f"cuda:{count}")


def test_a_gpu_that_is_too_old(monkeypatch):
    fake_cupy(monkeypatch, 1, "75")
    with pytest.raises(DeviceError, match=r"device cuda:0 has compute capability 7\.5; 8\.0 or more is needed"):
        open_device("cuda")


@pytest.mark.parametrize(("kilohertz", "bits", "rows"), [(2_619_000, 5120, 32), (3_201_000, 6144, 16), (0, 0, 32)])
def test_the_clock_of_the_memory_says_how_many_rows_our_products_take(kilohertz, bits, rows):
    """An H100, an H200, and a GPU that does not tell."""
    runtime = SimpleNamespace(
        deviceGetAttribute=lambda attribute, index: {"clock": kilohertz, "width": bits}[attribute],
        cudaDevAttrMemoryClockRate="clock",
        cudaDevAttrGlobalMemoryBusWidth="width",
    )
    assert max_few(memory_rate(runtime, 0)) == rows


def opened(**cupy):
    """A CupyDevice on a fake CuPy with these attributes."""
    device = CupyDevice.__new__(CupyDevice)
    device._cupy, device._functions = SimpleNamespace(**cupy), {}
    device._device = device._stream = nullcontext()
    device._cupy.ndarray = np.ndarray
    return device


def test_a_kernel_that_does_not_compile_is_named_with_its_first_error():
    class CompileError(Exception):
        pass

    class Module:
        def __init__(self, code, options):
            assert "rope_naive" in code and "-DHEAD_DIM=64" in options

        def get_function(self, name):
            raise CompileError("2 errors\nrope.cu(31): error: identifier is undefined\nrope.cu(40): error: another")

    compiler = SimpleNamespace(CompileException=CompileError)
    device = opened(RawModule=Module, cuda=SimpleNamespace(compiler=compiler))
    with pytest.raises(DeviceError) as error:
        device.launch(Kernel("rope.cu", "rope", ("HEAD_DIM=64",)), (1,), (1,), [np.int32(0)])
    assert str(error.value) == (
        "kernels/rope.cu does not compile on this GPU: rope.cu(31): error: identifier is undefined"
    )


def test_an_allocation_that_fails_says_what_it_needs_and_what_is_free():
    class OutOfMemory(Exception):
        pass

    def empty(shape, dtype):
        raise OutOfMemory

    device = opened(empty=empty, cuda=SimpleNamespace(memory=SimpleNamespace(OutOfMemoryError=OutOfMemory)))
    device._device = SimpleNamespace(mem_info=(3 * 10**9, 80 * 10**9))
    device._current = nullcontext
    with pytest.raises(DeviceError, match=r"out of GPU memory: 4\.00 GB needed, 3\.00 of 80\.0 GB free"):
        device.alloc((10**9,), np.float32)


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("bindings", [None, "driver"])
def test_a_launch_overlaps_only_in_a_capture_and_if_it_is_dependent(monkeypatch, capturing, dependent, bindings):
    plain, overlapping = [], []
    monkeypatch.setattr("llama3.cuda.device.launch_dependent", lambda *call: overlapping.append(call))
    device, stream = opened(), nullcontext()
    stream.ptr = 11
    device._stream, device._driver, device.capturing = stream, bindings, Graph() if capturing else None

    def function(*call, shared_mem):
        plain.append((*call, shared_mem))

    function.kernel = SimpleNamespace(ptr=22)
    kernel = Kernel("x.cu", "x")
    device._functions[kernel] = function
    device.launch(kernel, (3,), (32,), [np.int32(1)], shared=8, dependent=dependent)
    if capturing and dependent and bindings:
        ((driver, stream, function, launch),) = overlapping
        assert (driver, stream, function) == ("driver", 11, 22) and not plain
        assert (launch.grid, launch.block, launch.args, launch.shared) == ((3, 1, 1), (32, 1, 1), [np.int32(1)], 8)
    else:
        assert plain == [((3, 1, 1), (32, 1, 1), (np.int32(1),), 8)] and not overlapping


@pytest.mark.parametrize(("capability", "found"), [(89, False), (90, True), (120, True)])
def test_launches_overlap_from_hopper_on_if_the_bindings_are_installed(monkeypatch, capability, found):
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver="driver"))
    assert (driver_for(capability) == "driver") is found
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert driver_for(capability) is None


def test_another_backend_can_be_registered(monkeypatch):
    monkeypatch.setitem(BACKENDS, "emulated", EmulatedDevice)
    assert isinstance(open_device("emulated"), EmulatedDevice)


def test_a_run_that_requires_a_gpu_and_used_none_fails():
    """The run fails even if all of its tests pass."""
    test = f"{__file__}::test_a_gpu_that_is_too_old"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    for required, code in ((False, 0), (True, 1)):
        left_out = ("LLAMA3_GPU_TESTS", "CI")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing them takes longer than the test
        environment |= {"LLAMA3_GPU_TESTS": "1"} if required else {}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == code and ("no test ran on a GPU" in run.stdout) == required, run.stdout


def test_cupy_is_only_imported_when_a_gpu_is_opened(tmp_path):
    """Neither llama3 nor the modules that launch kernels import it, so a broken CuPy does not stop the CPU path."""
    (tmp_path / "cupy.py").write_text("raise SystemExit('imported')")
    modules = "llama3, llama3.cuda.device, llama3.cuda.attention, llama3.cuda.linear"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kernels_text_holds_every_header_once_and_the_original_line_numbers():
    text = kernel_source("attention.cu")
    for header in ("common.cuh", "ptx.cuh"):
        assert text.count(f'#line 1 "{header}"') == 1
    assert "#pragma once" not in text and '#include "' not in text
    behind = text[text.rindex("#line") :].splitlines()
    line, name = int(behind[0].split()[1]), behind[0].split()[2]
    assert name == '"attention.cu"'
    assert resource("kernels", "attention.cu").read_text().splitlines()[line - 1 :] == behind[1:]
