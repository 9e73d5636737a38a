"""Calls of NCCL: the struct that is passed by value, errors in its own words, and what is said without it."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from llama3.checkpoint import load_folder
from llama3.cuda import nccl
from llama3.cuda.doctor import examine
from llama3.cuda.launch import Kernel
from llama3.errors import DeviceError
from llama3.resources import resource
from tests.tensor_parallel.emulated_gpus import FakeNccl, Gpu


def test_the_types_say_that_the_unique_id_is_passed_by_value():
    """Without them ctypes would pass 128 bytes as a pointer, or an address as 32 bits."""
    functions = {name: SimpleNamespace(argtypes=None, restype=None) for name in nccl.PARAMETERS}
    library = nccl.with_types(SimpleNamespace(**functions))
    assert ctypes.sizeof(nccl.UniqueId) == 128
    assert library.ncclCommInitRank.argtypes[2] is nccl.UniqueId
    assert library.ncclAllReduce.argtypes[-2:] == [ctypes.c_void_p, ctypes.c_void_p]
    assert library.ncclGetErrorString.restype is ctypes.c_char_p


def test_an_error_is_told_in_nccl_s_own_words():
    library = SimpleNamespace(
        ncclGetUniqueId=lambda made: 2, ncclGetErrorString=lambda status: b"unhandled system error"
    )
    with pytest.raises(DeviceError, match=r"^NCCL: ncclGetUniqueId failed: unhandled system error$"):
        nccl.unique_id(library)


def test_a_version_is_read():
    def get(number):
        number._obj.value = 22704
        return 0

    assert nccl.version(SimpleNamespace(ncclGetVersion=get)) == "2.27.4"


def test_a_collective_is_recorded_in_a_capture_and_runs_at_each_replay():
    library, device = FakeNccl(1), Gpu()
    comm = nccl.Nccl(library, device, 0, 1, nccl.unique_id(library))
    x = device.upload(np.ones(4, np.float32))
    with device.capture() as graph:
        comm.all_reduce(x)
    assert library.sums == [[]] and graph.launches == 1
    for _ in range(2):
        device.replay(graph)
    assert len(library.sums[0]) == 2


def test_a_launch_behind_a_collective_is_not_dependent():
    """How NCCL's kernels let their successors start is not known."""
    library, device, launches = FakeNccl(1), Gpu(), []
    comm = nccl.Nccl(library, device, 0, 1, nccl.unique_id(library))
    device._launch = lambda launch: launches.append(launch.dependent)
    x = device.upload(np.ones(4, np.float32))
    comm.all_reduce(x)
    for _ in range(2):
        device.launch(Kernel("rope.cu", "rope"), (1,), (1,), [x], dependent=True)
    assert launches == [False, True]


def test_the_doctor_asks_for_nccl_only_for_several_gpus(monkeypatch):
    def no_library(path):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(nccl, "ctypes", SimpleNamespace(CDLL=no_library))  # not for all of Python
    demo = load_folder(resource("weights/demo"))
    assert "NCCL" not in [check.name for check in examine(demo, "cuda")]
    checks = {check.name: check for check in examine(demo, "cuda:0-1")}
    assert not checks["NCCL"].ok and checks["NCCL"].fix.startswith("pip install nvidia-nccl-cu13")
    assert not checks["shape"].ok and checks["shape"].found.startswith("device cuda:0-1: n_kv_heads is 1")
    assert checks["memory"].found == checks["shape"].found
