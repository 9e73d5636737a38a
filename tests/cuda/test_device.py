"""Which GPU, and what is said where there is none. CuPy is stood in for: absent, without a driver, with an old GPU."""

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from llama3.cuda.device import BACKENDS, CupyDevice, Kernel, open_device
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
def test_a_gpu_that_is_not_there(monkeypatch, count, message):
    fake_cupy(monkeypatch, count)
    with pytest.raises(DeviceError, match=f"device cuda:{count}: this machine {message}"):
        open_device(f"cuda:{count}")


def test_a_gpu_that_is_too_old(monkeypatch):
    fake_cupy(monkeypatch, 1, "75")
    with pytest.raises(DeviceError, match=r"device cuda:0 has compute capability 7\.5; 8\.0 or more is needed"):
        open_device("cuda")


def opened(**cupy):
    """A CupyDevice on a CuPy that is stood in for."""
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


def test_an_allocation_that_fails_says_what_was_asked_for_and_what_is_free():
    class OutOfMemory(Exception):
        pass

    def empty(shape, dtype):
        raise OutOfMemory

    device = opened(empty=empty, cuda=SimpleNamespace(memory=SimpleNamespace(OutOfMemoryError=OutOfMemory)))
    device._device = SimpleNamespace(mem_info=(3 * 10**9, 80 * 10**9))
    device._current = nullcontext
    with pytest.raises(DeviceError, match=r"out of GPU memory: 4\.00 GB asked for, 3\.00 of 80\.0 GB free"):
        device.alloc((10**9,), np.float32)


def test_another_backend_can_stand_in_its_place(monkeypatch):
    monkeypatch.setitem(BACKENDS, "emulated", EmulatedDevice)
    assert isinstance(open_device("emulated"), EmulatedDevice)


def test_cupy_is_imported_by_a_gpu_alone(tmp_path):
    """Not by llama3, nor by the modules that launch kernels: a CuPy that cannot be imported harms nobody else."""
    (tmp_path / "cupy.py").write_text("raise SystemExit('imported')")
    modules = "llama3, llama3.cuda.device, llama3.cuda.attention, llama3.cuda.linear"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kernels_text_holds_every_header_once_and_names_lines_as_they_are():
    text = kernel_source("attention.cu")
    for header in ("common.cuh", "ptx.cuh"):
        assert text.count(f'#line 1 "{header}"') == 1
    assert "#pragma once" not in text and '#include "' not in text
    behind = text[text.rindex("#line") :].splitlines()
    line, name = int(behind[0].split()[1]), behind[0].split()[2]
    assert name == '"attention.cu"'
    assert resource("kernels", "attention.cu").read_text().splitlines()[line - 1 :] == behind[1:]
