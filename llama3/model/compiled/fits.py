"""Which matrices the compiled kernels take; NumPy multiplies by the others. To ask needs no numba."""

import ml_dtypes
import numpy as np

from llama3.model.quantised import QuantisedMatrix

CODES = ("int8", "uint8", "float8_e4m3fn")  # of 8 bits


def fits(w: np.ndarray, rows: int, columns: int) -> bool:
    """Whether w (n_out, n_in) is what a compiled kernel takes: bfloat16, C-contiguous, not empty, aligned, and n_out
    and n_in are multiples of `rows` and `columns`.
    """
    return bool(
        w.dtype == ml_dtypes.bfloat16
        and w.ndim == 2
        and w.size
        and w.shape[0] % rows == w.shape[1] % columns == 0
        and w.flags.c_contiguous
        and w.flags.aligned  # a file may hold it at an odd address
    )


def fits_quantised(w: QuantisedMatrix) -> bool:
    """Whether the compiled kernels take w: rows in multiples of 4, columns of 16 (4 bits: 128), and whole groups.

    A group has all columns, or a multiple of 16. With 4 bits it has all, 16, 32, 64, or a multiple of 128. Codes of
    float8 have no zero.
    """
    (n_out, n_in), width = w.shape, w.group[1]
    if w.bits == 4:
        known, whole = w.codes.dtype == np.uint8, width in (16, 32, 64) or width % 128 == 0
    else:
        known, whole = w.codes.dtype.name in CODES and w.table is None, width % 16 == 0
        known = known and not (w.codes.dtype.kind == "V" and np.any(w.zero))
    return bool(
        known
        and n_out * n_in
        and n_out % 4 == n_in % (128 if w.bits == 4 else 16) == 0
        and w.codes.flags.c_contiguous
        and (width >= n_in or (whole and n_in % width == 0))
    )


def fits_amx_quantised(w: QuantisedMatrix) -> bool:
    """Whether AMX takes w: what the other kernels take, without a table, in rows and columns in multiples of 32.

    A group has all columns, or at most 2,048. A code less its zero is from -256 to 256, so that bfloat16 holds it
    exactly.
    """
    (n_out, n_in), width = w.shape, w.group[1]
    zeros = np.asarray(w.zero)
    least, most = (-1, 256) if w.codes.dtype == np.uint8 and w.bits == 8 else (-128, 128)
    return bool(
        fits_quantised(w)
        and w.table is None
        and n_out % 32 == n_in % 32 == 0
        and (width >= n_in or (width % 32 == 0 and width <= 2048))
        and least <= zeros.min() <= zeros.max() <= most
    )
