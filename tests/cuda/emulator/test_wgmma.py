"""The emulated matrix instructions of Hopper multiply, and refuse each misuse that could pass unnoticed on a GPU."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llama3.cuda.launch import Kernel
from tests.cuda.emulator.device import ORDERS, EmulationError

KERNEL = Kernel(str(Path(__file__).parent / "products.cu"), "products")
# Bytes; 1,024 to begin at a multiple of 1,024. The last 128 bring the beginning to a place that is no such multiple.
SHARED = 1024 + 2 * 64 * (64 + 128 + 32) + 128
MISUSES = {  # the bug's number in products.cu, and what the emulation says
    1: "not begin in the first of eight rows",
    3: "without fence.proxy.async",
    4: "into which cp.async still copies",
    5: "without fence.proxy.async",
    6: "no copy has filled|still copies|may still read",
    7: "no wgmma.fence",
    8: "not begin in the first of eight rows",
    9: "outside this block's dynamic shared memory",
    11: "give different descriptors",
    12: "divergence",
    13: "leaves the products in these accumulators under way",
    14: "an accumulator was written before the wait",
    15: "registers of operand A have changed before the wait",
    16: "overwrites shared memory that a wgmma product may still read",
    17: "leaves the products in these accumulators under way",
    18: "ends with wgmma products that this thread did not wait for",
}


def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((64, 64), (128, 64), (16, 128))]


def products(device, bug=0, threads=128):
    device.capability = 90
    out = device.alloc((64, 128), np.float32)
    args = [*(device.upload(array) for array in arrays()), out, np.int32(bug)]
    device.launch(KERNEL, (1,), (threads,), args, shared=SHARED)
    return device.download(out)


def expected():
    a, b, v = (array.astype(np.float64) for array in arrays())
    return a @ b.T + a[:, :16] @ v


@pytest.mark.parametrize("order", ORDERS)
def test_matrices_in_shared_memory_and_registers_are_multiplied(emulated, order):
    with emulated.in_order(order):
        np.testing.assert_allclose(products(emulated), expected(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bug", MISUSES)
@pytest.mark.parametrize("order", ORDERS)
def test_a_misuse_is_noticed(emulated, bug, order):
    with emulated.in_order(order), pytest.raises(EmulationError, match=MISUSES[bug]):
        products(emulated, bug)


@pytest.mark.parametrize("bug", [2, 10, 19], ids=["not swizzled", "wrong distance of panels", "read before the wait"])
def test_a_wrong_layout_or_an_early_read_gives_other_numbers(emulated, bug):
    assert not np.allclose(products(emulated, bug), expected(), rtol=1e-2, atol=1e-2)


def test_half_a_warpgroup_cannot_multiply(emulated):
    with pytest.raises(EmulationError, match="no full warpgroup"):
        products(emulated, threads=64)
