"""cuBLAS gets the right calls, in and outside of graphs, and wrong ones are noticed. A fake library takes them."""

import ctypes
import gc
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from llama3.cuda import cublas
from llama3.cuda import device as device_module
from llama3.cuda.cublas import Cublas
from llama3.cuda.device import CupyDevice
from llama3.errors import DeviceError
from tests.cuda.emulator.cublas import PROTOTYPES
from tests.cuda.emulator.device import STREAM, EmulatedDevice, EmulationError
from tests.cuda.kernel_checks import assert_close, bfloat16, random

ROWS, N_OUT, WIDTH = 5, 24, 64  # all different, so that no two can be swapped unnoticed


def inputs(out_type, seed=0):
    x, w = random(seed, ROWS, WIDTH), random(seed + 1, N_OUT, WIDTH)
    return x, w, random(seed + 2, ROWS, N_OUT, dtype=out_type)


def expected(x, w, before, accumulate):
    return x.astype(np.float64) @ w.astype(np.float64).T + accumulate * before.astype(np.float64)


def addresses(*arrays):
    return tuple(array.ctypes.data for array in arrays)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("out_type", [bfloat16, np.float32])
def test_a_graph_multiplies_what_is_there_when_it_is_replayed(device, out_type, accumulate):
    x, w, before = inputs(out_type)
    there = [device.upload(array) for array in (x, w, before)]
    device.gemm(*there, accumulate=accumulate)
    assert_close(device.download(there[2]), expected(x, w, before, accumulate))
    with device.capture() as graph:
        device.gemm(*there, accumulate=accumulate)
    for seed in (3, 6):
        x, w, before = inputs(out_type, seed)
        for array, into in zip((x, w, before), there):
            device.upload(array, into=into)
        device.replay(graph)
        assert_close(device.download(there[2]), expected(x, w, before, accumulate))


def test_outside_of_device_memory_is_refused():
    device = EmulatedDevice()
    x, w, out = (device.upload(array) for array in inputs(np.float32))
    with pytest.raises(EmulationError, match="no array in device memory"):
        device.gemm(np.array(x), w, out)
    with pytest.raises(DeviceError):
        device._cublas.gemm(addresses(x, w, out), (ROWS, N_OUT + 8, WIDTH), N_OUT + 8, True, False)
    assert "bytes at byte" in str(device.library.error)


def test_a_graph_whose_memory_was_freed_is_refused():
    device = EmulatedDevice()
    x, w, out = (device.upload(array) for array in inputs(np.float32))
    device.gemm(x, w, out)
    with device.capture() as graph:
        device.gemm(x, w, out)
    device.replay(graph)  # the graph keeps its arrays
    graph.keep.clear()
    del w
    gc.collect()
    with pytest.raises(EmulationError, match="was it freed"):
        device.replay(graph)


# What is passed on wrongly: a constant with another value, or two sizes swapped.
WRONG = [
    ("TRANSPOSED", 0),
    ("AS_IT_IS", 1),
    ("BF16", 2),  # CUDA_R_16F
    ("FLOAT", 1),  # CUDA_R_64F
    ("COMPUTE_FLOAT", 64),  # CUBLAS_COMPUTE_16F
    ("ALGORITHM", 0),
    ("SUMS_STAY_FLOAT", 0),
    ("WORKSPACE", 4 << 20),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_constant_is_noticed(monkeypatch, name, value):
    monkeypatch.setattr(cublas, name, value)
    device = EmulatedDevice()
    x, w, before = inputs(np.float32)
    out = device.upload(before)
    try:
        device.gemm(device.upload(x), device.upload(w), out)
    except EmulationError:
        return
    assert not np.allclose(device.download(out), expected(x, w, before, False), rtol=1e-2)


@pytest.mark.parametrize("swapped", [(0, 1), (1, 2), (0, 2)])
def test_swapped_sizes_are_noticed(swapped):
    device = EmulatedDevice()
    x, w, out = (device.upload(array) for array in inputs(np.float32))
    sizes = [ROWS, N_OUT, WIDTH]
    i, j = swapped
    sizes[i], sizes[j] = sizes[j], sizes[i]
    device.gemm(x, w, out)
    right = device.download(out)
    try:
        device._cublas.gemm(addresses(x, w, out), sizes, sizes[1], True, False)
    except DeviceError:
        return
    assert not np.array_equal(device.download(out), right)


def test_the_prototypes_are_those_of_the_header():
    assert {name: list(types) for name, types in PROTOTYPES.items()} == cublas.PARAMETERS


class Library:
    """Records the names of the calls. `answers`: the status that a function returns, if it is not 0."""

    def __init__(self, answers):
        self.calls, self.answers = [], answers
        for name in cublas.PARAMETERS:
            setattr(self, name, self._recorder(name))

    def _recorder(self, name):
        def call(*args):
            self.calls.append(name)
            return self.answers.get(name, 0)

        return call


def opened(answers=()):
    library = Library(dict(answers))

    class Gpu:
        def __enter__(self):
            library.calls.append("gpu")

        def __exit__(self, *_):
            library.calls.append("end")

    return library, Cublas(library, Gpu(), STREAM, 1 << 20)


def test_the_gpu_is_the_current_one_in_every_call_and_the_workspace_is_set_after_the_stream():
    library, handle = opened()
    handle.gemm((1, 2, 3), (4, 5, 6), 5, True, False)
    del handle  # the handle is destroyed with its object
    gc.collect()
    names = ["Create_v2", "SetStream_v2", "SetWorkspace_v2", "SetMathMode", "GemmEx", "Destroy_v2"]
    assert library.calls == [part for name in names for part in ("gpu", f"cublas{name}", "end")]


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("cublasCreate_v2", 1, "cuBLAS: cublasCreate failed: not initialised: is there a driver?"),
        ("cublasGemmEx", 15, "cuBLAS: cublasGemmEx failed: not supported"),
        ("cublasSetWorkspace_v2", 99, "cuBLAS: cublasSetWorkspace failed: status 99"),
    ],
)
def test_what_cublas_refuses_is_one_line(name, status, message):
    with pytest.raises(DeviceError) as error:
        opened({name: status})[1].gemm((1, 2, 3), (4, 5, 6), 5, True, False)
    assert str(error.value) == message


@pytest.mark.parametrize("problem", [None, RuntimeError("libcublas.so.13:\n not found"), OSError("bad ELF")])
def test_without_the_library_it_says_what_to_install(monkeypatch, problem):
    def load(name):
        assert name == "cublas"
        raise problem

    finder = problem and SimpleNamespace(load_nvidia_dynamic_lib=load)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
    with pytest.raises(DeviceError, match=r"^no cuBLAS \(.*\); pip install 'llama3\[cuda13-ctk\]'"):
        cublas.load_library()


def test_the_library_is_the_one_that_cupy_takes(monkeypatch):
    found = SimpleNamespace(abs_path="libc.so.6")
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=lambda name: found))
    assert isinstance(cublas.load_library(), ctypes.CDLL)


@pytest.mark.parametrize("out_type", [bfloat16, np.float32])
@pytest.mark.parametrize("accumulate", [False, True])
def test_cupys_addresses_and_stream_reach_the_library(monkeypatch, out_type, accumulate):
    """A CupyDevice whose arrays are in the emulated device's memory."""
    emulated = EmulatedDevice()
    x, w, before = inputs(out_type)
    there = [emulated.upload(array) for array in (x, w, before)]
    emulated._cublas  # noqa: B018 - opens the fake library
    monkeypatch.setattr(device_module, "load_library", lambda: emulated.library)

    class OfCupy:
        def __init__(self, array):
            self.shape, self.dtype, self.ndim, self.flags = array.shape, array.dtype, array.ndim, array.flags
            self.strides = array.strides
            self.array, self.data = array, SimpleNamespace(ptr=array.ctypes.data)

        def __len__(self):
            return len(self.array)

    device = CupyDevice.__new__(CupyDevice)
    device._device, device._stream = nullcontext(), SimpleNamespace(ptr=STREAM)
    device.alloc = lambda shape, dtype: OfCupy(emulated.alloc(shape, dtype))
    device.gemm(*map(OfCupy, there), accumulate=accumulate)
    assert_close(emulated.download(there[2]), expected(x, w, before, accumulate))
