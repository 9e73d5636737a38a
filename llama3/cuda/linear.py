"""Products with the weight matrices for a few rows (kernels/linear.cu). Many rows go through `Device.gemm`."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel

LINEAR = Kernel("linear.cu", "linear")
LINEAR_FLOAT = Kernel("linear.cu", "linear_float")
LINEAR_ADD = Kernel("linear.cu", "linear_add")
LINEAR_SWIGLU = Kernel("linear.cu", "linear_swiglu")
THREADS = 256
OUTPUTS = THREADS // 32  # a block's: one a warp


def linear(device: Device, x: Array, w: Array, out: Array) -> None:
    """x (T, in), w (out, in) bfloat16 -> out (T, out) bfloat16 = x @ w.T; `in` a multiple of 8."""
    _launch(device, LINEAR, [w], x, out)


def linear_float(device: Device, x: Array, w: Array, out: Array) -> None:
    """As `linear`, into float32: the logits."""
    _launch(device, LINEAR_FLOAT, [w], x, out)


def linear_add(device: Device, x: Array, w: Array, out: Array) -> None:
    """out (T, out) float32 += x @ w.T: the residual stream takes in what a block has computed."""
    _launch(device, LINEAR_ADD, [w], x, out)


def linear_swiglu(device: Device, x: Array, w_gate: Array, w_up: Array, out: Array) -> None:
    """out (T, out) bfloat16 = silu(x @ w_gate.T) * (x @ w_up.T)."""
    _launch(device, LINEAR_SWIGLU, [w_gate, w_up], x, out)


def _launch(device: Device, kernel: Kernel, matrices: list[Array], x: Array, out: Array) -> None:
    (rows, width), n_out = x.shape, out.shape[1]
    assert out.shape[0] == rows and width % 8 == 0, (x.shape, out.shape)
    assert all(w.shape == (n_out, width) for w in matrices), ([w.shape for w in matrices], x.shape, out.shape)
    args = [*matrices, x, out, np.int32(n_out), np.int32(width)]
    device.launch(kernel, (-(-n_out // OUTPUTS), rows), (THREADS,), args, dependent=True)
