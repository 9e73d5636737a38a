"""The products with weight matrices, and what is fused with them, agree with float64 for 1 row, up to 32, and more."""

import numpy as np
import pytest

from llama3.cuda import linear as cuda
from llama3.cuda.arrays import NormInput
from llama3.cuda.launch import Kernel
from llama3.cuda.rms_norm import rms_norm
from tests.cuda.kernel_checks import assert_close, bfloat16, random

# n_out, width: less than a warp reads at once, odd tails, fewer outputs than a block has warps, more outputs.
SHAPES = [(1, 64), (9, 1088), (35, 320), (50, 128), (8, 4160)]
FEW = [2, 3, 8, 9, 17, 32]
MORE = [33, 65]
EPS = 1e-5
MANY = 60  # outputs; with fewer, rounding the largest to bfloat16 may alone be 1.5e-5 of the row's mean square


def inputs(rows, n_out, width, matrices=1):
    return random(rows, rows, width), random(1000 + n_out, matrices * n_out, width, scale=width**-0.5)


def product(x, w):
    return x.astype(np.float64) @ w.astype(np.float64).T


def swiglu(gate, up):
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


def norm_of(device, x, norm):
    """RMSNorm rounded as the kernels round it: to bfloat16."""
    h = device.alloc(x.shape, bfloat16)
    rms_norm(device, NormInput(device.upload(x), device.upload(norm), EPS), h)
    return device.download(h)


def launched(device, function, arrays, out):
    """The array `out` after the call. Before the call it is uploaded with its values."""
    uploaded = device.upload(out)
    function(device, *(device.upload(array) for array in arrays), uploaded)
    return device.download(uploaded)


def in_orders(in_every_order, *call):
    return in_every_order(lambda: launched(*call))


def poison(rows, n_out, dtype):
    return np.full((rows, n_out), np.nan, dtype)


def by_output(array):
    """All outputs as one row: a row of few outputs is too short to measure errors against."""
    return array.reshape(1, -1)


def linear_naive(device, x, w, out):
    (rows, width), n_out = x.shape, len(w)
    args = [w, x, out, np.int32(n_out), np.int32(width)]
    device.launch(Kernel("linear.cu", "linear_naive"), (-(-n_out // 32), rows), (32,), args)


def norm_linear(device, x, norm, w, out):
    h = device.alloc(x.shape, bfloat16)
    cuda.norm_linear(device, NormInput(x, norm, EPS), w, h, out)


def norm_swiglu(device, x, norm, w13, out):
    h, gate_up = device.alloc(x.shape, bfloat16), device.alloc((len(x), len(w13)), bfloat16)
    cuda.norm_swiglu(device, NormInput(x, norm, EPS), w13, h, gate_up, out)


@pytest.mark.parametrize("rows", [1, *FEW, *MORE])
@pytest.mark.parametrize("dtype", [bfloat16, np.float32])
def test_agrees_with_float64(device, in_every_order, dtype, rows):
    for n_out, width in SHAPES if rows == 1 else [(35, 320), (1, 64), (64, 1088)]:
        x, w = inputs(rows, n_out, width)
        found = in_orders(in_every_order, device, cuda.linear, [x, w], poison(rows, n_out, dtype))
        expected = product(x, w)
        assert_close(found, expected) if n_out >= MANY else assert_close(by_output(found), by_output(expected))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_naive_kernel_agrees_with_float64(device, rows):
    x, w = inputs(rows, 35, 320)
    found = launched(device, linear_naive, [x, w], poison(rows, 35, bfloat16))
    assert_close(found, product(x, w))


@pytest.mark.parametrize("rows", [1, *FEW, *MORE])
def test_adds_to_the_residual_stream(device, in_every_order, rows):
    x, w = inputs(rows, 64, 1088)
    before = random(7, rows, 64, dtype=np.float32)
    found = in_orders(in_every_order, device, cuda.linear_add, [x, w], before)
    assert_close(found, before + product(x, w))


@pytest.mark.parametrize("scale", [1, 1000])  # with 1000, exp overflows on both sides
@pytest.mark.parametrize("rows", [1, 3, 17, 32, 33])
def test_swiglu_of_the_norm_opens_and_closes_channels(device, in_every_order, rows, scale):
    for n_out, width in SHAPES[1:] if rows == 1 else [(99 if rows in FEW else 104, 320)]:
        x, norm = random(1, rows, width, dtype=np.float32), random(2, width)
        w13 = random(3, 2 * n_out, width, scale=width**-0.5)
        w13[:n_out] = (w13[:n_out].astype(np.float32) * scale).astype(bfloat16)
        out = poison(rows, n_out, bfloat16)
        found = in_orders(in_every_order, device, norm_swiglu, [x, norm, w13], out)
        both = product(norm_of(device, x, norm), w13)
        if rows > cuda.MAX_FEW:  # cuBLAS rounds its result to bfloat16
            both = both.astype(bfloat16).astype(np.float64)
        expected = swiglu(both[:, :n_out], both[:, n_out:])
        assert_close(found, expected) if n_out >= MANY else assert_close(by_output(found), by_output(expected))


@pytest.mark.parametrize("rows", [1, 3, 33])
def test_a_product_of_the_norm_is_the_norm_and_then_the_product(device, in_every_order, rows):
    """Bit for bit, even where one kernel does both."""
    for n_out, width in SHAPES:
        x, norm, w = random(1, rows, width, dtype=np.float32), random(2, width), inputs(1, n_out, width)[1]
        found = in_orders(in_every_order, device, norm_linear, [x, norm, w], poison(rows, n_out, np.float32))
        h = norm_of(device, x, norm)
        assert_close(by_output(found), by_output(product(h, w)))
        assert np.array_equal(found, launched(device, cuda.linear, [h, w], found))


@pytest.mark.parametrize(("few", "more"), [(2, 8), (9, 16), (17, 32)])
def test_a_row_does_not_see_its_neighbours_or_how_many_they_are(device, few, more):
    """This holds within a variant of the kernel; the variants take up to 8, 16 or 32 rows."""
    x, w = inputs(more, 50, 1088)
    whole = launched(device, cuda.linear, [x, w], poison(more, 50, np.float32))
    fewer = launched(device, cuda.linear, [x[:few], w], poison(few, 50, np.float32))
    other = launched(device, cuda.linear, [np.concatenate([x[:1], -x[1:] * 3]), w], poison(more, 50, np.float32))
    assert np.array_equal(whole[:few], fewer)
    assert np.array_equal(whole[:1], other[:1])
