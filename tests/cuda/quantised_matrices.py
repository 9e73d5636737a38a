"""Random quantised matrices of every kind that the kernels take, and their upload."""

import ml_dtypes
import numpy as np
import pytest

from llama3.cuda.quantised import SCRATCH_ROWS, QuantisedArray, row_bytes, upload_rows
from llama3.model.quantised import QuantisedMatrix
from tests.cuda.kernel_checks import bfloat16

# The unmarked tests run one kind: each kind of each kernel takes two seconds to compile.
KINDS = (pytest.param("Int8", marks=pytest.mark.slow), pytest.param("Fp8", marks=pytest.mark.slow), "Int4")


def quantised(kind, seed, n_out, width, zeros=False):
    """Entries have about the size width^-0.5, as those of the other tests. zeros: of groups, all different."""
    rng = np.random.default_rng(seed)
    size = width**-0.5
    if kind == "Int4":
        codes = rng.integers(0, 256, (n_out, width // 2), np.uint8)
        scale = (rng.uniform(0.1, 0.4, (n_out, width // 128)) * size).astype(bfloat16)
        zero = rng.integers(0, 16, scale.shape, np.uint8) if zeros else 8
        return QuantisedMatrix((n_out, width), 4, codes, (1, 128), scale, zero)
    scale = (rng.uniform(0.5, 2, (n_out, 1)) * size / (60 if kind == "Int8" else 100)).astype(np.float32)
    if kind == "Int8":
        codes = rng.integers(-128, 128, (n_out, width)).astype(np.int8)
    else:
        codes = (rng.standard_normal((n_out, width)) * 100).astype(ml_dtypes.float8_e4m3fn)
        codes[:, ::7] = (codes[:, ::7].astype(np.float32) / 2**13).astype(codes.dtype)  # with subnormal numbers
    return QuantisedMatrix((n_out, width), 8, codes, (1, width), scale)


def dequantised(w):
    """(n_out, n_in) float64"""
    return w.rows(0, len(w)).astype(np.float64)


def uploaded(device, kind, w):
    rows = device.alloc((len(w), row_bytes(kind, w.shape[1])), np.uint8)
    upload_rows(device, kind, w, rows)
    return QuantisedArray(kind, w.shape, rows, device.alloc((SCRATCH_ROWS * w.shape[1],), bfloat16))


def rounded(kind, matrix):
    """A matrix rounded to this kind, each row or group with the scale that its largest entry needs."""
    matrix = matrix.astype(np.float32)
    n_out, width = matrix.shape
    if kind == "Int4":
        groups = matrix.reshape(n_out, -1, 128)
        low, high = groups.min(axis=2), groups.max(axis=2)
        scale = ((high - low) / 15).astype(np.float16)
        zero = np.rint(-low / scale.astype(np.float32)).astype(np.uint8)
        codes = np.rint(groups / scale[..., None].astype(np.float32) + zero[..., None]).clip(0, 15).astype(np.uint8)
        codes = codes.reshape(n_out, -1)
        return QuantisedMatrix((n_out, width), 4, codes[:, ::2] | codes[:, 1::2] << 4, (1, 128), scale, zero)
    dtype, largest = (np.int8, 127) if kind == "Int8" else (ml_dtypes.float8_e4m3fn, 448)
    scale = np.abs(matrix).max(axis=1, keepdims=True) / largest
    codes = matrix / scale
    codes = (np.rint(codes) if kind == "Int8" else codes).astype(dtype)
    return QuantisedMatrix((n_out, width), 8, codes, (1, width), scale)
