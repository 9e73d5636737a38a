"""Matrices of codes of 8 and 4 bits on the GPU, in the layout of kernels/weights.cuh: what the products read."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.launch import Kernel
from llama3.model.quantised import QuantisedMatrix

GROUP = 128  # columns that share a scale in a matrix of 4 bits
SMALLEST, LARGEST = 2.0**-14, 65504.0  # float16 holds 11 bits of each number between these
THREADS = 256
PER_PIECE = {"Int8": 16, "Fp8": 16, "Int4": 32}  # entries in 16 bytes of codes
SCRATCH_ROWS = 4096  # rows that are made bfloat16 at a time


@dataclass(frozen=True)
class QuantisedArray:
    """A matrix (n_out, n_in) as rows of bytes: a row's codes, then its scales."""

    kind: str  # WEIGHT of the kernels: "Int8", "Fp8" or "Int4"
    shape: tuple[int, int]
    rows: Array  # (n_out, row_bytes) uint8
    scratch: Array  # (SCRATCH_ROWS * largest n_in,) bfloat16, shared by all matrices: see `dequantised`

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def defines(self) -> tuple[str, ...]:
        return (f"WEIGHT={self.kind}",)


Matrix = Array | QuantisedArray  # what the products take; an Array is bfloat16


def kind_of(w: QuantisedMatrix) -> str | None:
    """The kernels' name for such a matrix; None if they do not take it, so that it has to become bfloat16."""
    if w.table is not None:
        return None
    if w.bits == 8:
        if w.group not in ((1, w.shape[1]), w.shape) or w.shape[1] % 64:
            return None
        if w.codes.dtype == ml_dtypes.float8_e4m3fn:
            return "Fp8" if _is(w.zero, 0) else None
        zero = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}.get(w.codes.dtype)
        return "Int8" if zero is not None and _is(w.zero, zero) else None
    scale = np.abs(64 * w.scale.astype(np.float32))
    fits = w.group == (1, GROUP) and w.shape[1] % GROUP == 0 and scale.max() <= LARGEST
    return "Int4" if fits and (scale[scale > 0] >= SMALLEST).all() else None


def _is(zero: np.ndarray | int, value: int) -> bool:
    return bool(np.all(np.asarray(zero) == value))


def row_bytes(kind: str, width: int) -> int:
    """Bytes of a row: codes, scales, and padding to a multiple of 64."""
    scales = width // GROUP * 4 if kind == "Int4" else 4
    return width * 16 // PER_PIECE[kind] + -(-scales // 64) * 64


def upload_rows(device: Device, kind: str, w: QuantisedMatrix, into: Array) -> None:
    """Fill `into` (n_out, row_bytes) uint8 with the codes and scales of a matrix; kind: as `kind_of` names it."""
    (n_out, width), codes = w.shape, w.codes
    n_bytes = width * 16 // PER_PIECE[kind]
    scales = np.zeros((n_out, row_bytes(kind, width) - n_bytes), np.uint8)
    if kind == "Int4":
        groups = np.empty((n_out, width // GROUP, 2), np.uint16)
        groups[..., 0] = (64 * w.scale.astype(np.float32)).astype(np.float16).view(np.uint16)
        groups[..., 1] = (-np.asarray(w.zero, np.float32) / 64).astype(bfloat16).view(np.uint16)
        scales[:, : groups[0].nbytes] = groups.reshape(n_out, -1).view(np.uint8)
        words = device.upload(np.ascontiguousarray(codes[:, :n_bytes]).view(np.uint32))
        args = [words, into, np.int32(n_out), np.int32(width)]
        blocks = -(-n_out * width // 8 // THREADS)
        device.launch(Kernel("quantised.cu", "order_codes", ("WEIGHT=Int4",)), (blocks,), (THREADS,), args)
    else:
        if codes.dtype == np.uint8:  # 0 to 255 stand for -128 to 127
            codes = codes ^ np.uint8(128)
        device.copy(device.upload(codes.view(np.uint8)), into=into[:, :n_bytes])
        factor = np.float32(64 if kind == "Int8" else 1)
        of_rows = np.broadcast_to(w.scale.astype(np.float32) * factor, (n_out, 1))
        scales[:, :4] = np.ascontiguousarray(of_rows).view(np.uint8)
    device.copy(device.upload(scales), into=into[:, n_bytes:])


def dequantised(device: Device, w: QuantisedArray, first: int, last: int) -> Array:
    """Rows first to last - 1, at most SCRATCH_ROWS, as bfloat16 in the scratch memory: until the next call."""
    n, width = last - first, w.shape[1]
    out = w.scratch[: n * width].reshape(n, width)
    blocks = -(-n * width // PER_PIECE[w.kind] // THREADS)
    args = [w.rows[first:last], out, np.int32(n), np.int32(width)]
    device.launch(Kernel("quantised.cu", "dequantise", w.defines), (blocks,), (THREADS,), args, dependent=True)
    return out
