"""Products with quantised matrices, and what is fused with them, agree with float64 of the dequantised weights."""

from functools import partial

import numpy as np
import pytest

from llama3.cuda import linear as cuda
from llama3.cuda import quantised as cuda_quantised
from llama3.cuda.arrays import LayerCache, NormInput, RopeTable, Rows
from llama3.cuda.launch import Kernel
from llama3.cuda.qkv import norm_qkv_rope
from tests.cuda.kernel_checks import assert_close, bfloat16, random
from tests.cuda.quantised_matrices import KINDS, dequantised, quantised, uploaded
from tests.cuda.test_linear import EPS, by_output, norm_linear, norm_of, norm_swiglu, poison, swiglu
from tests.cuda.test_qkv import MAX_LEN, SLOT, inputs, one_by_one

# n_out, width: less than a warp reads at once, an odd tail, several passes of a warp over a row
SHAPES = {"Int8": [(9, 64), (9, 2112)], "Fp8": [(9, 64), (9, 2112)], "Int4": [(9, 128), (9, 4480)]}
WIDTH = {"Int8": 320, "Fp8": 320, "Int4": 384}
kinds = pytest.mark.parametrize("kind", KINDS)


def run(device, function, arrays, kind, w, out):
    """As test_linear.launched, with a quantised matrix as the last array."""
    into = device.upload(out)
    function(device, *map(device.upload, arrays), uploaded(device, kind, w), into)
    return device.download(into)


def linear_naive(device, x, w, out):
    (rows, width), n_out = x.shape, len(w)
    args = [w.rows, x, out, np.int32(n_out), np.int32(width)]
    device.launch(Kernel("linear.cu", "linear_naive", w.defines), (-(-n_out // 32), rows), (32,), args)


@kinds
@pytest.mark.parametrize("dtype", [bfloat16, np.float32])
def test_one_row_agrees_with_float64(device, in_every_order, kind, dtype):
    for n_out, width in SHAPES[kind]:
        w, x = quantised(kind, 1, n_out, width, zeros=True), random(2, 1, width)
        expected = x.astype(np.float64) @ dequantised(w).T
        found = in_every_order(partial(run, device, cuda.linear, [x], kind, w, poison(1, n_out, dtype)))
        assert_close(by_output(found), by_output(expected))
        assert_close(
            by_output(run(device, linear_naive, [x], kind, w, poison(1, n_out, bfloat16))), by_output(expected)
        )


@kinds
@pytest.mark.parametrize("rows", [2, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (9, 32, 45))])
def test_a_few_rows_agree_with_float64(device, in_every_order, kind, rows):
    """More than 32 rows, up to 64, take two launches."""
    for n_out, width in [(64, WIDTH[kind]), (35, 8 * WIDTH[kind])][: 2 if rows < 32 else 1]:
        w, x = quantised(kind, 1, n_out, width, zeros=True), random(2, rows, width)
        found = in_every_order(partial(run, device, cuda.linear, [x], kind, w, poison(rows, n_out, np.float32)))
        assert_close(by_output(found), by_output(x.astype(np.float64) @ dequantised(w).T))


@kinds
def test_many_rows_agree_with_float64(device, monkeypatch, kind):
    """cuBLAS multiplies them by weights that were rounded to bfloat16, a part of the matrix after the other."""
    monkeypatch.setattr(cuda, "SCRATCH_ROWS", 24)
    width = WIDTH[kind]
    w, x, before = quantised(kind, 1, 64, width, zeros=True), random(2, 65, width), random(3, 65, 64, dtype=np.float32)
    expected = x.astype(np.float64) @ dequantised(w).T
    error = run(device, cuda.linear, [x], kind, w, poison(65, 64, np.float32)) - expected
    assert (error**2).mean() <= 1e-5 * (expected**2).mean()
    error = run(device, cuda.linear_add, [x], kind, w, before) - (before + expected)
    assert (error**2).mean() <= 1e-5 * (expected**2).mean()


@kinds
def test_both_kernels_dequantise_to_the_same_bits(device, kind):
    w = quantised(kind, 1, 9, WIDTH[kind], zeros=True)
    array = uploaded(device, kind, w)
    fast = device.download(cuda_quantised.dequantised(device, array, 2, 9))
    assert np.array_equal(fast, dequantised(w)[2:].astype(np.float32).astype(bfloat16))
    naive = device.alloc((7, w.shape[1]), bfloat16)
    args = [array.rows[2:], naive, np.int32(7), np.int32(w.shape[1])]
    device.launch(Kernel("quantised.cu", "dequantise_naive", array.defines), (7 * w.shape[1] // 32,), (32,), args)
    assert np.array_equal(fast, device.download(naive))


@kinds
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_fused_with_the_product(device, in_every_order, kind, rows):
    width = WIDTH[kind]
    x, norm, w = random(1, rows, width, dtype=np.float32), random(2, width), quantised(kind, 3, 64, width)
    h = norm_of(device, x, norm)
    both = h.astype(np.float64) @ dequantised(w).T
    found = in_every_order(lambda: run(device, norm_linear, [x, norm], kind, w, poison(rows, 64, np.float32)))
    assert_close(by_output(found), by_output(both))
    found = in_every_order(lambda: run(device, norm_swiglu, [x, norm], kind, w, poison(rows, 32, bfloat16)))
    assert_close(by_output(found), by_output(swiglu(both[:, :32], both[:, 32:])))
    before = random(4, rows, 64, dtype=np.float32)
    assert_close(run(device, cuda.linear_add, [h], kind, w, before), before + both)


@kinds
def test_queries_keys_and_values_in_one_launch(device, kind):
    """As the launches one by one."""
    x, norm, _, table = inputs(4, 1, 64, WIDTH[kind])
    w = uploaded(device, kind, quantised(kind, 3, 6 * 64, WIDTH[kind]))
    found = []
    for function in (norm_qkv_rope, one_by_one):
        q = device.upload(np.full((1, 4, 64), 7, bfloat16))
        k, v = (device.upload(np.full((2, 1, MAX_LEN, 64), 7, bfloat16)) for _ in range(2))
        rows = Rows(*(device.upload(np.array([number], np.int32)) for number in (5, SLOT)))
        source = NormInput(device.upload(x), device.upload(norm), EPS)
        function(device, source, w, RopeTable(*map(device.upload, table)), rows, q, LayerCache(k, v))
        found.append([device.download(array).astype(np.float64) for array in (q, k[SLOT, :, 5], v[SLOT, :, 5])])
    for one, other in zip(*found):
        assert ((one - other) ** 2).sum() <= 1e-5 * (other**2).sum()
    assert (device.download(v)[0] == bfloat16(7)).all()


@kinds
@pytest.mark.parametrize(
    ("few", "more"), [(2, 8), *(pytest.param(*rows, marks=pytest.mark.slow) for rows in ((9, 16), (17, 32)))]
)
def test_a_row_does_not_see_its_neighbours_or_how_many_they_are(device, kind, few, more):
    """As in test_linear.py: within a variant of the kernel."""
    w, x = quantised(kind, 1, 35, WIDTH[kind]), random(2, more, WIDTH[kind])
    whole, fewer, other = (
        run(device, cuda.linear, [rows], kind, w, poison(len(rows), 35, np.float32))
        for rows in (x, x[:few], np.concatenate([x[:1], -x[1:] * 3]))
    )
    assert np.array_equal(whole[:few], fewer)
    assert np.array_equal(whole[:1], other[:1])
