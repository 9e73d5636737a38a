"""Products with the weight matrices, for any number of rows, and what is joined to them.

One row (kernels/linear.cu) and up to 64 (kernels/linear_few.cu) take as long as the weights take to arrive, and a graph
holds them. More rows go through cuBLAS, whose product waits for its arithmetic, and graphs do not.
"""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel, bfloat16
from llama3.cuda.feed_forward import swiglu
from llama3.cuda.rms_norm import rms_norm

MAX_FEW = 64  # rows that our own kernels take; cuBLAS takes more
THREADS = 256
OUTPUTS = THREADS // 32  # a block's of linear.cu: one a warp
FEW_OUTPUTS = 32  # a block's of linear_few.cu; of swiglu_few 16, each two sums


def bucket(rows: int) -> int:
    """The next power of two: linear_few.cu is compiled, and graphs are captured, for so many rows."""
    return 1 << (rows - 1).bit_length()


def linear(device: Device, x: Array, w: Array, out: Array) -> None:
    """x (T, in), w (out, in) bfloat16 -> out (T, out) bfloat16 or float32 = x @ w.T; `in` a multiple of 64."""
    if len(x) > MAX_FEW:
        device.gemm(x, w, out)
    else:
        _launch(device, "linear", w, x, out)


def linear_add(device: Device, x: Array, w: Array, out: Array) -> None:
    """out (T, out) float32 += x @ w.T: the residual stream takes in what a block has computed."""
    assert out.dtype == np.float32, out.dtype
    if len(x) > MAX_FEW:
        device.gemm(x, w, out, accumulate=True)
    else:
        _launch(device, "linear", w, x, out, "_add")


def norm_linear(device: Device, x: Array, norm: Array, eps: float, w: Array, h: Array, out: Array) -> None:
    """out (T, out) float32 = rms_norm(x) @ w.T; x (T, in) float32, norm (in,); h (T, in) is scratch."""
    assert out.dtype == np.float32, out.dtype
    if len(x) == 1:
        _launch_norm(device, "norm_linear", w, x, norm, eps, out)
    else:
        norm_then_linear(device, x, norm, eps, w, h, out)


def norm_then_linear(device: Device, x: Array, norm: Array, eps: float, w: Array, h: Array, out: Array) -> None:
    """The same in two launches for any number of rows, so that h is there for what else needs it; out bfloat16, too."""
    rms_norm(device, x, norm, eps, h)
    linear(device, h, w, out)


def norm_swiglu(
    device: Device, x: Array, norm: Array, eps: float, w13: Array, h: Array, gate_up: Array, out: Array
) -> None:
    """out (T, hidden) bfloat16 = silu(h @ w1.T) * (h @ w3.T), h = rms_norm(x); w13 (2 * hidden, in): w1, then w3.

    h (T, in) and gate_up (T, 2 * hidden) bfloat16 are scratch; gate_up is used for more than 64 rows.
    """
    if len(x) == 1:
        _launch_norm(device, "norm_swiglu", w13, x, norm, eps, out, matrices=2)
        return
    rms_norm(device, x, norm, eps, h)
    if len(x) > MAX_FEW:
        device.gemm(h, w13, gate_up)
        swiglu(device, gate_up, out)
    else:
        _launch(device, "swiglu", w13, h, out, matrices=2)


def _launch(device: Device, name: str, w: Array, x: Array, out: Array, end: str = "", matrices: int = 1) -> None:
    (rows, width), n_out = x.shape, out.shape[1]
    assert w.shape == (matrices * n_out, width) and out.shape[0] == rows, (x.shape, w.shape, out.shape)
    assert width % 64 == 0 and x.dtype == w.dtype == bfloat16, (x.shape, x.dtype, w.dtype)
    end = end or ("_float" if out.dtype == np.float32 else "")
    args = [w, x, out, np.int32(n_out), np.int32(width)]
    if rows == 1 and matrices == 1:
        device.launch(Kernel("linear.cu", name + end), (-(-n_out // OUTPUTS),), (THREADS,), args, dependent=True)
    else:
        columns = max(8, bucket(rows))
        kernel = Kernel("linear_few.cu", f"{name}_few{end}", (f"ROWS={columns}",))
        grid = (-(-n_out * matrices // FEW_OUTPUTS),)
        device.launch(kernel, grid, (THREADS,), [*args, np.int32(rows)], dependent=True)


def _launch_norm(
    device: Device, name: str, w: Array, x: Array, norm: Array, eps: float, out: Array, matrices: int = 1
) -> None:
    (rows, width), n_out = x.shape, out.shape[1]
    assert rows == 1 and w.shape == (matrices * n_out, width) and norm.shape == (width,), (x.shape, w.shape, norm.shape)
    assert width % 64 == 0 and x.dtype == np.float32 and w.dtype == bfloat16, (x.shape, x.dtype, w.dtype)
    kernel, grid = Kernel("linear.cu", name), (-(-n_out // OUTPUTS),)
    args = [w, x, norm, out, np.int32(n_out), np.int32(width), np.float32(eps)]
    device.launch(kernel, grid, (THREADS,), args, shared=2 * width, dependent=True)
