"""A weight matrix in 8 or 4 bits an entry: each entry is a code, and each row or group of columns has a scale.

    entry (i, j) = (code (i, j) - zero) * scale          zero and scale of the group that (i, j) belongs to

The codes stay as they are in memory. `linear` multiplies by such a matrix as by any other: a tile of rows at a time is
turned into float32 and used up before the next, as in `linear.py`. `quantised_product.py` has faster ways for most of
them. Nothing is rounded on the way, neither the entries, which are exact products in float32 of a small integer and a
scale, nor the activations.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from llama3.model.quantised_product import FEW, float8_values, multiply_by_row, multiply_few, tile_height
from llama3.model.threads import share


@dataclass(frozen=True)
class QuantisedMatrix:
    """Codes and scales, in one layout for every scheme that `checkpoint/` reads."""

    shape: tuple[int, int]  # (n_out, n_in)
    bits: int  # of a code, 8 or 4
    # Of 8 bits: int8, uint8 or float8_e4m3fn. Of 4 bits: uint8, two codes in a byte, that of the even column in the
    # lower half, and perhaps more bytes than needed at the end of a row.
    codes: np.ndarray  # (n_out, n_in), or of 4 bits (n_out, n_in / 2)
    group: tuple[int, int]  # rows and columns that share a scale: (1, n_in), (1, 128), (128, 128), or the whole shape
    scale: np.ndarray  # (ceil(n_out / group[0]), ceil(n_in / group[1])) float32, bfloat16 or float16
    zero: np.ndarray | int = 0  # the code of 0: one for the matrix, or an array of integers in the shape of `scale`
    table: np.ndarray | None = None  # (16,) float32: the values of the codes, if they are not the codes themselves

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def arrays(self) -> list[np.ndarray]:
        """All that a product reads: codes, scales and, if there are several, zeros."""
        return [array for array in (self.codes, self.scale, self.zero) if isinstance(array, np.ndarray)]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def kind(self) -> str:
        """int8, int4, nf4 or float8_e4m3fn."""
        if self.codes.dtype.kind == "V":  # neither an integer nor a float of NumPy's own
            return self.codes.dtype.name
        return "nf4" if self.table is not None else f"int{self.bits}"

    # Whoever wants to look at entries may read the matrix as an array of float32. It is computed at each use, so what
    # multiplies often calls `product`.
    dtype = np.dtype(np.float32)

    def __getitem__(self, rows: slice) -> np.ndarray:
        begin, end, step = rows.indices(len(self))
        return self.rows(begin, max(begin, end))[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.rows(0, len(self)).astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: Any, copy: bool = True) -> np.ndarray:
        return self.__array__(dtype)

    def rows(self, begin: int, end: int) -> np.ndarray:
        """The rows from begin to end as float32, (end - begin, n_in)."""
        codes, n_in = self.codes[begin:end], self.shape[1]
        if self.bits == 4:
            halves = np.stack([codes & 15, codes >> 4], axis=-1)
            codes = halves.reshape(len(codes), -1)[:, :n_in]
        if self.table is not None:
            values = self.table[codes]
        else:
            values = float8_values(codes) if codes.dtype.kind == "V" else codes.astype(np.float32)
        values -= self._spread(self.zero, begin, end)
        values *= self._spread(self.scale, begin, end)
        return values

    def _spread(self, of_groups: np.ndarray | int, begin: int, end: int) -> np.ndarray:
        """One number for each group -> one for each entry of the rows from begin to end, or for each row, or one."""
        of_rows = self._of_rows(of_groups, begin, end)
        return of_rows if of_rows.shape[1] == 1 else np.repeat(of_rows, self.group[1], axis=1)[:, : self.shape[1]]

    def _of_rows(self, of_groups: np.ndarray | int, begin: int, end: int) -> np.ndarray:
        """(rows of groups, groups) -> (end - begin, groups) float32; one number -> (1, 1)"""
        if not isinstance(of_groups, np.ndarray):
            return np.full((1, 1), of_groups, np.float32)
        height = self.group[0]
        rows = of_groups[begin:end] if height == 1 else of_groups[np.arange(begin, end) // height]
        return rows.astype(np.float32)

    def part(self, rows: slice, columns: slice) -> "QuantisedMatrix":
        """The matrix of these rows and columns: views of the codes, and of the scales and zeros of their groups.

        It must begin where a group begins, or lie within one, and not begin with the second code of a byte. Otherwise a
        ValueError names what would be cut.
        """
        spans = [range(n)[of_part] for n, of_part in zip(self.shape, (rows, columns))]
        for name, n, size, span in zip(("rows", "columns"), self.shape, self.group, spans):
            if span.start % size and span.start // size != (span.stop - 1) // size:
                raise ValueError(f"{n} {name} in groups of {size}")
        if spans[1].start * self.bits % 8:
            raise ValueError(f"{self.shape[1]} columns in bytes of 2")
        groups = tuple(slice(span.start // size, -(-span.stop // size)) for span, size in zip(spans, self.group))
        of_bytes = slice(spans[1].start * self.bits // 8, -(-spans[1].stop * self.bits // 8))
        return replace(
            self,
            shape=(len(spans[0]), len(spans[1])),
            codes=self.codes[rows, of_bytes],
            group=(min(self.group[0], len(spans[0])), min(self.group[1], len(spans[1]))),
            scale=self.scale[groups],
            zero=self.zero[groups] if isinstance(self.zero, np.ndarray) else self.zero,
        )

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) float32 -> x @ w.T, (T, n_out) float32"""
        assert x.dtype == np.float32 and x.shape[1] == self.shape[1], (x.dtype, x.shape, self.shape)
        (n_out, n_in), width = self.shape, self.group[1]
        scale, zero = (self._of_rows(of_groups, 0, n_out) for of_groups in (self.scale, self.zero))
        if width >= n_in and self.codes.dtype.kind in "iu" and self.bits == 8:
            return multiply_by_row(x, self.codes, scale, zero)
        if 0 < len(x) <= FEW and self.table is None and n_in % width == width % (8 // self.bits) == 0:
            return multiply_few(x, self.codes, self.bits, scale, zero)
        out = np.empty((len(x), n_out), np.float32)
        if len(x):
            share(partial(self._multiply, x, out), n_out, tile_height(n_in))
        return out

    def _multiply(self, x: np.ndarray, out: np.ndarray, tiles: Iterator[slice]) -> None:
        for rows in tiles:
            out[:, rows] = x @ self.rows(rows.start, rows.stop).T
