"""Products with quantised matrices, and what is fused with them, agree with float64 of the dequantised weights."""

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
        found = in_every_order(lambda: run(device, cuda.linear, [x], kind, w, poison(1, n_out, dtype)))
        assert_close(by_output(found), by_output(expected))
        assert_close(by_output(run(device, linear_naive, [x], kind, w, poison(1, n_out, bfloat16))), by_output(expected))
