"""RMSNorm (kernels/rms_norm.cu)."""

import numpy as np

from llama3.cuda.arrays import NormInput
from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

RMS_NORM = Kernel("rms_norm.cu", "rms_norm")
RMS_NORM_ROWS = Kernel("rms_norm.cu", "rms_norm_rows")
THREADS = 256


def rms_norm(device: Device, source: NormInput, out: Array) -> None:
    """source.x (T, dim) float32 -> out (T, dim) bfloat16; dim a multiple of 8."""
    x, weight = source.x, source.weight
    rows, dim = x.shape
    assert out.shape == x.shape and weight.shape == (dim,) and dim % 8 == 0, (x.shape, weight.shape, out.shape)
    args = [x, weight, out, np.int32(dim), np.float32(source.eps)]
    device.launch(RMS_NORM, (rows,), (THREADS,), args, dependent=True)


def rms_norm_rows(device: Device, source: NormInput, rows: Array, out: Array) -> None:
    """The norm of some rows: out[i] = rms_norm(x[rows[i]]); rows (n,) int32, each below T; out (n, dim) bfloat16."""
    x, weight = source.x, source.weight
    dim = x.shape[1]
    assert out.shape == (*rows.shape, dim) and weight.shape == (dim,) and dim % 8 == 0, (x.shape, rows.shape, out.shape)
    args = [x, rows, weight, out, np.int32(dim), np.float32(source.eps)]
    device.launch(RMS_NORM_ROWS, rows.shape, (THREADS,), args, dependent=True)
