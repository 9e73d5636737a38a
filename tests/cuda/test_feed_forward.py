"""Both SwiGLU kernels agree with float64."""

import numpy as np
import pytest

from llama3.cuda.feed_forward import swiglu
from llama3.cuda.launch import Kernel
from tests.cuda.kernel_checks import assert_close, bfloat16, random


def swiglu_naive(device, gate_up, out):
    args = [gate_up, out, *(np.int32(n) for n in out.shape)]
    device.launch(Kernel("feed_forward.cu", "swiglu_naive"), (-(-len(out) // 32),), (32,), args)


@pytest.mark.parametrize("kernel", [swiglu, swiglu_naive])
@pytest.mark.parametrize(("rows", "hidden_dim"), [(1, 64), (3, 320), (70, 64), (33, 192)])
@pytest.mark.parametrize("scale", [1, 1000])
def test_agrees_with_float64(device, in_every_order, kernel, rows, hidden_dim, scale):
    gate_up = random(rows, rows, 2 * hidden_dim, scale=scale)
    uploaded = device.upload(gate_up)

    def run():
        out = device.alloc((rows, hidden_dim), bfloat16)
        kernel(device, uploaded, out)
        return device.download(out)

    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    with np.errstate(over="ignore"):
        assert_close(in_every_order(run), gate / (1 + np.exp(-gate)) * up)
