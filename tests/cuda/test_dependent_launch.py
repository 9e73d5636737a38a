"""A dependent launch calls the driver with the right arguments. A fake driver takes the call, so no GPU is needed."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from cuda.bindings import driver as bindings

from llama3.cuda.dependent_launch import launch_dependent
from llama3.cuda.launch import Kernel, Launch
from llama3.errors import DeviceError


class Driver:
    """NVIDIA's own types; the launch is only recorded."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __getattr__(self, name):
        return getattr(bindings, name)

    def cuLaunchKernelEx(self, *call):
        self.calls.append(call)
        return (self.answer,)


def launched(answer=bindings.CUresult.CUDA_SUCCESS):
    driver, array = Driver(answer), SimpleNamespace(data=SimpleNamespace(ptr=1 << 40))
    args = [array, np.int32(-5), np.float32(0.5), np.int64(1 << 33), np.uint32(7)]
    launch_dependent(driver, 11, 22, Launch(Kernel("x.cu", "x"), (3, 4, 5), (256, 1, 1), args, 1024, dependent=True))
    return driver.calls


def test_grid_block_memory_stream_and_the_attribute_are_passed_on():
    ((config, function, _, extra),) = launched()
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (3, 4, 5)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ, config.sharedMemBytes) == (256, 1, 1, 1024)
    assert (int(config.hStream), int(function), extra, config.numAttrs) == (11, 22, 0, 1)
    (attribute,) = config.attrs
    kinds = bindings.CUlaunchAttributeID
    assert attribute.id == kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert attribute.value.programmaticStreamSerializationAllowed == 1


def test_an_array_is_its_address_and_a_scalar_has_its_own_type():
    ((_, _, (values, types), _),) = launched()
    assert values == (1 << 40, -5, 0.5, 1 << 33, 7)
    assert types == (ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_int64, ctypes.c_uint32)


def test_a_refusal_is_one_line():
    with pytest.raises(DeviceError, match="the driver refused a dependent launch: CUDA_ERROR_INVALID_VALUE"):
        launched(bindings.CUresult.CUDA_ERROR_INVALID_VALUE)
