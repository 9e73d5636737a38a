import numpy as np
import pytest

from llama3.cuda import linear as cuda
from llama3.cuda.device import Kernel
from tests.cuda.kernel_checks import assert_close, bfloat16, random

# rows of x, outputs, width: less than a warp's step, just one, odd tails, fewer outputs than a block has warps
SHAPES = [(1, 1, 64), (1, 9, 1024), (1, 16, 1088), (3, 35, 320), (1, 8, 4160), (2, 5, 2048)]


def inputs(rows, n_out, width):
    return random(rows, rows, width), random(n_out, n_out, width, scale=width**-0.5)


def product(x, w):
    return x.astype(np.float64) @ w.astype(np.float64).T


def launched(device, function, x, matrices, out):
    """`out` after the call; it starts as what it holds here."""
    there = device.upload(out)
    function(device, device.upload(x), *(device.upload(w) for w in matrices), there)
    return device.download(there)


def linear_naive(device, x, w, out):
    (rows, width), n_out = x.shape, len(w)
    args = [w, x, out, np.int32(n_out), np.int32(width)]
    device.launch(Kernel("linear.cu", "linear_naive"), (-(-n_out // 32), rows), (32,), args)


def poison(rows, n_out, dtype):
    return np.full((rows, n_out), np.nan, dtype)


def by_output(array):
    """All outputs as one row: a single one has no row to be measured against."""
    return array.reshape(1, -1)


@pytest.mark.parametrize(
    ("function", "dtype"), [(cuda.linear, bfloat16), (cuda.linear_float, np.float32), (linear_naive, bfloat16)]
)
@pytest.mark.parametrize(("rows", "n_out", "width"), SHAPES)
def test_agrees_with_float64(device, in_every_order, function, dtype, rows, n_out, width):
    x, w = inputs(rows, n_out, width)
    found = in_every_order(lambda: launched(device, function, x, [w], poison(rows, n_out, dtype)))
    assert_close(found, product(x, w))


@pytest.mark.parametrize(("rows", "n_out", "width"), SHAPES)
def test_adds_to_the_residual_stream(device, in_every_order, rows, n_out, width):
    x, w = inputs(rows, n_out, width)
    before = random(7, rows, n_out, dtype=np.float32)
    found = in_every_order(lambda: launched(device, cuda.linear_add, x, [w], before))
    assert_close(found, before + product(x, w))


@pytest.mark.parametrize("scale", [1, 1000])  # with 1000, exp overflows on both sides
@pytest.mark.parametrize(("rows", "n_out", "width"), SHAPES[1:])
def test_swiglu_opens_and_closes_channels(device, in_every_order, rows, n_out, width, scale):
    x, gate = inputs(rows, n_out, width)
    gate, up = (gate.astype(np.float32) * scale).astype(bfloat16), random(5, n_out, width, scale=width**-0.5)
    out = poison(rows, n_out, bfloat16)
    found = in_every_order(lambda: launched(device, cuda.linear_swiglu, x, [gate, up], out))
    g = product(x, gate)
    with np.errstate(over="ignore"):
        expected = g / (1 + np.exp(-g)) * product(x, up)
    assert_close(by_output(found), by_output(expected))


def test_a_row_does_not_see_its_neighbours(device):
    x, w = inputs(5, 35, 320)
    whole = launched(device, cuda.linear, x, [w], poison(5, 35, bfloat16))
    alone = launched(device, cuda.linear, x[2:3], [w], poison(1, 35, bfloat16))
    assert np.array_equal(whole[2:3], alone)
