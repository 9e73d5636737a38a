"""Programmatic dependent launch: a kernel that starts while its predecessor runs, and loads its weights meanwhile.

CuPy launches by cuLaunchKernel, which has no attributes; NVIDIA's own bindings have the call that does. Building it
takes long, and is done once: in a capture, whose graph keeps the overlap. From compute capability 9.0 on.
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#programmatic-dependent-launch-and-synchronization
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama3.errors import DeviceError

MIN_CAPABILITY = 90  # Hopper


def driver_for(capability: int) -> Any:
    """`cuda.bindings.driver`, or None where it is not installed or the GPU too old: then no kernels overlap."""
    if capability < MIN_CAPABILITY:
        return None
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


def launch_dependent(
    driver: Any,
    stream: int,
    function: int,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    args: Sequence[Any],
) -> None:
    """Queue a kernel that may overlap the one before it. Raises DeviceError.

    stream, function: their handles; shared: bytes; args: arrays of CuPy and NumPy scalars.
    """
    value = driver.CUlaunchAttributeValue()
    value.programmaticStreamSerializationAllowed = 1
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value = value
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes, config.hStream = shared, driver.CUstream(stream)
    config.attrs, config.numAttrs = [attribute], 1
    (error,) = driver.cuLaunchKernelEx(config, driver.CUfunction(function), parameters(args), 0)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"a dependent launch was refused: {error.name}; without cuda-bindings none is made")


def parameters(args: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[type, ...]]:
    """What a kernel takes, as values and as the types of C that they have: an array is its address."""
    types: Any = np.ctypeslib  # its stubs know of no dtype but bool's
    pairs = [
        (arg.item(), types.as_ctypes_type(arg.dtype))
        if isinstance(arg, np.generic)
        else (arg.data.ptr, ctypes.c_void_p)
        for arg in args
    ]
    return tuple(value for value, _ in pairs), tuple(kind for _, kind in pairs)
