"""The product by a quantised matrix is x @ w.T of its entries, whatever the layout, and the entries are exact."""

from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from llama3.model import quantised_product
from llama3.model.linear import linear
from llama3.model.quantised import QuantisedMatrix
from llama3.model.quantised_product import FEW, float8_values

F8 = np.dtype(ml_dtypes.float8_e4m3fn)
KINDS = {
    # bits, dtype of codes, zero: a number or "many"
    "int8": (8, np.dtype(np.int8), 0),
    "int8 with zeros": (8, np.dtype(np.int8), "many"),
    "uint8": (8, np.dtype(np.uint8), 128),
    "uint8 with another zero": (8, np.dtype(np.uint8), 120),
    "uint8 with zeros": (8, np.dtype(np.uint8), "many"),
    "float8": (8, F8, 0),
    "int4": (4, np.dtype(np.uint8), 8),
    "int4 with another zero": (4, np.dtype(np.uint8), 7),
    "int4 with zeros": (4, np.dtype(np.uint8), "many"),
    "nf4": (4, np.dtype(np.uint8), "table"),
}
LAYOUTS = {  # shape and group
    "row": ((70, 96), (1, 96)),
    "group": ((70, 96), (1, 32)),
    "block": ((70, 96), (32, 48)),
    "matrix": ((70, 96), (70, 96)),
    "uneven groups": ((70, 90), (1, 32)),
    "an odd width": ((70, 93), (1, 31)),
    "blocks that reach over the end": ((70, 90), (32, 32)),
    "many tiles": ((1100, 512), (1, 128)),
}


def draw(kind: str, layout: str) -> tuple[QuantisedMatrix, np.ndarray]:
    """A random matrix, and its entries as float64, computed entry by entry."""
    random = np.random.RandomState(7)
    (bits, dtype, zero), (shape, group) = KINDS[kind], LAYOUTS[layout]
    groups = -(-shape[0] // group[0]), -(-shape[1] // group[1])
    codes = random.randint(0, 1 << bits, shape).astype(np.uint8)
    stored, values = codes.view(dtype), codes.astype(np.float64)
    if bits == 4:
        padded = np.pad(codes, ((0, 0), (0, 8 - shape[1] % 8)))  # more than needed, as packed words may have
        stored = padded[:, ::2] + 16 * padded[:, 1::2]
    elif dtype == F8:
        stored = np.where(codes % 128 == 127, 0, codes).astype(np.uint8).view(F8)
    if bits == 8:
        values = stored.astype(np.float64)
    scale = random.uniform(0.5, 1.5, groups).astype(ml_dtypes.bfloat16)
    i, j = np.indices(shape)
    at = (i // group[0], j // group[1])
    table = random.uniform(-1, 1, 16).astype(np.float32) if zero == "table" else None
    if table is not None:
        values, zero = table[codes].astype(np.float64), 0
    zeros = random.randint(0, 1 << bits, groups) if zero == "many" else zero
    values = (values - (zeros[at] if isinstance(zeros, np.ndarray) else zeros)) * scale[at].astype(np.float64)
    return QuantisedMatrix(shape, bits, stored, group, scale, zeros, table), values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_are_exact_and_the_product_is_theirs(kind: str, layout: str):
    w, entries = draw(kind, layout)
    assert np.array_equal(w.rows(0, len(w)), entries.astype(np.float32))
    assert np.array_equal(w[33:57], w.rows(33, 57)) and np.array_equal(np.array(w), w.rows(0, len(w)))
    for n in (0, 1, 2, FEW, FEW + 1, 40):
        check_product(n, w, entries)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_slices_of_tiles_meet_without_a_gap(kind: str):
    w, entries = draw(kind, "many tiles")
    with mock.patch.multiple(quantised_product, TILE=2**13, TILES=3):  # 22 full slices of 3 tiles, then a part of one
        check_product(2, w, entries)


def check_product(n: int, w: QuantisedMatrix, entries: np.ndarray) -> None:
    x = np.random.RandomState(n).standard_normal((n, w.shape[1])).astype(np.float32) + np.float32(0.3)
    # How far rounding may lead follows from the sum of the magnitudes.
    bound = 1e-6 * np.abs(x).astype(np.float64) @ np.abs(entries).T + 1e-6
    assert np.all(np.abs(linear(x, w) - x.astype(np.float64) @ entries.T) < bound)


def test_each_code_of_float8_has_its_value():
    codes = np.arange(256, dtype=np.uint8).view(F8)
    finite = np.arange(256) % 128 != 127
    assert np.array_equal(float8_values(codes[finite]), codes[finite].astype(np.float32))
    assert np.array_equal(np.signbit(float8_values(codes[finite])), np.signbit(codes[finite].astype(np.float32)))
    assert np.array_equal(float8_values(codes), codes.astype(np.float32), equal_nan=True)


def test_nan_in_a_matrix_of_float8_reaches_the_product():
    codes = np.zeros((64, 64), F8)
    codes[3, 5] = np.nan
    w = QuantisedMatrix((64, 64), 8, codes, (64, 64), np.ones((1, 1), np.float32))
    for n in (1, FEW + 1):
        out = linear(np.ones((n, 64), np.float32), w)
        assert np.isnan(out[:, 3]).all() and np.isfinite(np.delete(out, 3, axis=1)).all()


def test_the_size_counts_every_array():
    w, entries = draw("int4 with zeros", "group")
    assert w.size == entries.size and w.nbytes == w.codes.nbytes + w.scale.nbytes + w.zero.nbytes
    assert [draw(kind, "row")[0].kind for kind in ("int8", "uint8", "float8", "int4", "nf4")] == [
        "int8", "int8", "float8_e4m3fn", "int4", "nf4",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "many tiles"])
def test_a_part_has_the_entries_of_its_rows_and_columns_unless_it_cuts_a_group(kind: str, layout: str):
    """Or a byte, of 4 bits. The groups of a part are those of its own columns, counted from its first one."""
    w, entries = draw(kind, layout)
    random = np.random.RandomState(5)
    x = random.standard_normal((2, w.shape[1])).astype(np.float32)
    made = refused = 0
    for _ in range(40):
        spans, whole = [], True
        for n, size in zip(w.shape, w.group):
            begin = random.randint(n) // size * size if random.rand() < 0.6 else random.randint(n)
            spans.append(slice(begin, random.randint(begin, n) + 1))
            groups = np.arange(begin, spans[-1].stop) // size
            whole &= np.array_equal(groups - groups[0], np.arange(len(groups)) // min(size, len(groups)))
        if whole and (w.bits == 8 or spans[1].start % 2 == 0):
            part, expected = w.part(*spans), entries[tuple(spans)].astype(np.float32)
            assert part.shape == expected.shape and np.array_equal(part.rows(0, len(part)), expected)
            n_bytes = len(part) * -(-part.shape[1] * w.bits // 8)
            assert np.shares_memory(part.codes, w.codes) and part.codes.size == n_bytes
            columns = x[:, spans[1]]
            bound = 1e-3 * np.abs(columns).sum(axis=1, keepdims=True)  # entries are up to 448 * 1.5
            assert np.all(np.abs(linear(columns, part) - columns @ expected.T.astype(np.float64)) <= bound)
            made += 1
        else:
            with pytest.raises(ValueError, match=r"^\d+ (rows|columns) in (groups of \d+|bytes of 2)$"):
                w.part(*spans)
            refused += 1
    assert made >= 8 and (refused >= 4 or w.group in ((1, w.shape[1]), w.shape))
