"""The product y = x @ w.T on Intel's AMX tiles, where w is quantised. `amx_quantised_kernels.py` has the kernel.

x is split into three bfloat16 as in `linear_amx.py`, so the result is as accurate as float32, and a row of y has the
same bits whatever the number of rows of x. It differs from NumPy's in what that file lists, and in two more cases: a
sum is scaled at its end, so it overflows where x is above 1e35 or so; the codes of float8 that are NaN count as 480.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from llama3.model.compiled.aligned import aligned
from llama3.model.compiled.fits import fits_amx_quantised
from llama3.model.compiled.linear_amx import DIRECT, missing, products
from llama3.model.compiled.linear_quantised import for_kernels
from llama3.model.quantised import QuantisedMatrix
from llama3.model.threads import share

SLICE = 2**20  # bytes of codes that a thread takes at a time, at most, with few rows of x
BLOCK = 128  # rows of W that a thread takes and unpacks at a time, at most, with many rows of x


class AmxQuantisedMatrix:
    """A quantised matrix that AMX multiplies, for `linear`. Making the first of its kind compiles the kernel."""

    def __init__(self, w: QuantisedMatrix, parts: int = 3) -> None:
        """parts: bfloat16 numbers that a float32 of x is split into: 3 keep all its bits, 1 rounds it."""
        assert fits_amx_quantised(w) and parts in (1, 2, 3), (w.shape, w.bits, w.codes.dtype, w.group, parts)
        assert missing() is None, missing()  # or LLVM would end the process
        from llama3.model.compiled import amx_kernels, amx_quantised_kernels

        self.w, self.shape, self.parts = w, w.shape, parts
        kind, zeros, scale_type, self._arrays = for_kernels(w)
        self._kernel = amx_quantised_kernels.kernel(kind, zeros, scale_type)
        self._group = min(w.group[1], w.shape[1]) // 32  # in column tiles
        self._depth = amx_quantised_kernels.DEPTH
        if self._group < self._depth:
            self._depth -= self._depth % self._group
        for each in (amx_kernels.pack, self._kernel):
            each.compile()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.w.nbytes

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) float32 -> x @ w.T, (T, n_out) float32"""
        return self.products(x, [self])[0]

    @staticmethod
    def products(x: np.ndarray, matrices: "Sequence[AmxQuantisedMatrix]") -> list[np.ndarray]:
        """x (T, n_in) float32 -> x @ w.T of each, (T, n_out) float32. x is packed once for all of them."""
        return products(x, matrices)

    def multiply(self, packed: np.ndarray, y: np.ndarray) -> None:
        """y (T, n_out) = x, which is packed, times w"""
        row_bytes = self._arrays[0].shape[1]
        rows = min(BLOCK if len(y) > DIRECT else max(32, SLICE // row_bytes // 32 * 32), len(self))
        share(partial(self._multiply, packed, y, rows), len(self), 32, rows)

    def _multiply(self, x: np.ndarray, y: np.ndarray, rows: int, slices: Iterator[slice]) -> None:
        """Multiply slice after slice, each of up to `rows` rows of w, by packed x, into columns of y (T, n_out)."""
        buffer = aligned((len(x), rows, 16), np.float32)  # a block of x by rows of w by 16 rows of x
        unpacked = min(BLOCK, rows) if len(y) > DIRECT else 32
        tiles = aligned((unpacked // 16, self._depth, 16, 16), np.uint32)
        sums = aligned((64, 16), np.float32)
        for part in slices:
            buffer.fill(0)
            self._kernel(*self._arrays, x, buffer, tiles, sums, self._group, part.start, part.stop)
            height = part.stop - part.start
            y[:, part] = buffer[:, :height].transpose(0, 2, 1).reshape(-1, height)[: len(y)]
