"""Programmatic dependent launch: a kernel starts while its predecessor still runs, and loads its weights meanwhile.

CuPy launches kernels with cuLaunchKernel, which takes no attributes. NVIDIA's own bindings have the call that does.
Preparing such a call takes long, so it is only made while a graph is captured: the graph keeps the overlap. It needs
compute capability 9.0.
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#programmatic-dependent-launch-and-synchronization
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama3.cuda.launch import Launch
from llama3.errors import DeviceError

MIN_CAPABILITY = 90  # Hopper


def driver_for(capability: int) -> Any:
    """`cuda.bindings.driver`, or None if it is not installed or the GPU is too old: kernels then do not overlap."""
    if capability < MIN_CAPABILITY:
        return None
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


def launch_dependent(driver: Any, stream: int, function: int, launch: Launch) -> None:
    """Queue a kernel that may overlap the one before it. Raises DeviceError.

    stream, function: the handles of the stream and of the compiled kernel; launch.args: CuPy arrays and NumPy scalars.
    """
    value = driver.CUlaunchAttributeValue()
    value.programmaticStreamSerializationAllowed = 1
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value = value
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
    config.sharedMemBytes, config.hStream = launch.shared, driver.CUstream(stream)
    config.attrs, config.numAttrs = [attribute], 1
    (error,) = driver.cuLaunchKernelEx(config, driver.CUfunction(function), parameters(launch.args), 0)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the driver refused a dependent launch: {error.name}; uninstall cuda-bindings to avoid it")


def parameters(args: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[type, ...]]:
    """A kernel's arguments as the bindings take them: the values, and their C types. An array becomes its address."""
    types: Any = np.ctypeslib  # NumPy's stubs accept only bool as a dtype
    pairs = [
        (arg.item(), types.as_ctypes_type(arg.dtype))
        if isinstance(arg, np.generic)
        else (arg.data.ptr, ctypes.c_void_p)
        for arg in args
    ]
    return tuple(value for value, _ in pairs), tuple(kind for _, kind in pairs)
