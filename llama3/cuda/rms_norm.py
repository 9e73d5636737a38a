"""RMSNorm (kernels/rms_norm.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device, Kernel

RMS_NORM = Kernel("rms_norm.cu", "rms_norm")
RMS_NORM_ROWS = Kernel("rms_norm.cu", "rms_norm_rows")
THREADS = 256


def rms_norm(device: Device, x: Array, weight: Array, eps: float, out: Array) -> None:
    """x (T, dim) float32, weight (dim,) bfloat16 -> out (T, dim) bfloat16; dim a multiple of 8."""
    rows, dim = x.shape
    assert out.shape == x.shape and weight.shape == (dim,) and dim % 8 == 0, (x.shape, weight.shape, out.shape)
    args = [x, weight, out, np.int32(dim), np.float32(eps)]
    device.launch(RMS_NORM, (rows,), (THREADS,), args, dependent=True)


def rms_norm_rows(device: Device, x: Array, rows: Array, weight: Array, eps: float, out: Array) -> None:
    """out[i] = rms_norm(x[rows[i]]): rows (n,) int32, each below T, out (n, dim) bfloat16."""
    dim = x.shape[1]
    assert out.shape == (*rows.shape, dim) and weight.shape == (dim,) and dim % 8 == 0, (x.shape, rows.shape, out.shape)
    args = [x, rows, weight, out, np.int32(dim), np.float32(eps)]
    device.launch(RMS_NORM_ROWS, rows.shape, (THREADS,), args, dependent=True)
