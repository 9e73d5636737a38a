"""Every kernel test runs twice: emulated on the CPU, and on a GPU if there is one."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from llama3.cuda.device import CupyDevice, Device
from llama3.errors import DeviceError
from tests.cuda.compile_gates import read_table
from tests.cuda.emulator.build import COMPILER
from tests.cuda.emulator.device import ORDERS, EmulatedDevice


@pytest.fixture
def emulated() -> EmulatedDevice:
    if COMPILER is None:
        pytest.skip("no g++ to compile the kernels with")
    registers: dict[tuple[str, str, tuple[str, ...]], int] = {}
    for row in read_table():
        key = row.file, row.name, row.defines
        registers[key] = max(row.registers, registers.get(key, 0))
    return EmulatedDevice(registers=registers)


@pytest.fixture(scope="session")
def gpu() -> Device:
    """With LLAMA3_GPU_TESTS=1 a missing GPU is a failure; otherwise the test is skipped."""
    try:
        return CupyDevice()
    except DeviceError as error:
        if os.environ.get("LLAMA3_GPU_TESTS"):
            pytest.fail(f"LLAMA3_GPU_TESTS is set, and {error}")
        pytest.skip(f"no GPU: {error}")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    yield request.getfixturevalue(request.param)


@pytest.fixture
def in_every_order(device: Device) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function with threads and blocks in every order, and checks that the results are equal bit for bit."""

    def run(function: Callable[[], Any]) -> Any:
        if not isinstance(device, EmulatedDevice):
            return function()
        results = []
        for order in ORDERS:
            with device.in_order(order):
                results.append(function())
        for order, other in zip(ORDERS, results):
            assert bits(other) == bits(results[0]), f"different bits in {order} order: a race"
        return results[0]

    return run


def bits(result: Any) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in (result if isinstance(result, tuple) else (result,))]
