"""Quantised weights on AMX tiles, in a simulator of the instructions: accuracy, equal bits, and what does not fit.

On a CPU with AMX, the compiled kernels must give the simulator's bits.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

pytest.importorskip("numba", reason="numba is not installed")

from llama3.model.compiled import amx_kernels, amx_quantised_kernels, linear_amx_quantised
from llama3.model.compiled.fits import fits_amx_quantised
from llama3.model.compiled.linear_amx import missing
from llama3.model.compiled.linear_amx_quantised import AmxQuantisedMatrix
from llama3.model.linear import linear, linears
from llama3.model.quantised import QuantisedMatrix
from tests.model.compiled.amx_simulator import product_in_order, simulated
from tests.model.compiled.test_linear_amx import assembly_of, draw, nmse
from tests.model.compiled.test_linear_quantised import KINDS, matrix

needs_amx = pytest.mark.skipif(missing() is not None, reason=f"no AMX: {missing()}")
TAKEN = [kind for kind in KINDS if not kind.startswith("table") and kind != "int4, groups of 16"]
SOME = ["int8, a scale a row", "uint8, groups of 64, zeros", "float8, groups of 128", "int4, groups of 128"]
ROWS = [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 96, 97]


@pytest.fixture(params=["simulated", pytest.param("on this CPU", marks=needs_amx)])
def amx(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to run the kernel, with so small slices and depths that a matrix has several."""
    small = (
        mock.patch.multiple(linear_amx_quantised, BLOCK=32, SLICE=2048),
        mock.patch.object(amx_quantised_kernels, "DEPTH", 4),
    )
    with simulated() if request.param == "simulated" else nullcontext(), small[0], small[1]:
        yield


def entries(w: QuantisedMatrix) -> np.ndarray:
    return w.rows(0, len(w)).astype(np.float64)


@pytest.mark.parametrize("rows", [1, 17, 70])
@pytest.mark.parametrize("kind", TAKEN)
def test_three_parts_are_as_accurate_as_float32(kind: str, rows: int, amx: None) -> None:
    x, w = draw(rows, 384), matrix(kind, 96, 384)
    y = AmxQuantisedMatrix(w).product(x)
    assert y.dtype == np.float32 and y.shape == (rows, 96) and y.flags.c_contiguous
    assert nmse(y, x, entries(w)) <= max(2 * nmse(x @ w.rows(0, 96).T, x, entries(w)), 1e-14)


@pytest.mark.parametrize(("width", "columns"), [(96, 2208), (1536, 4608)])
def test_groups_need_not_divide_what_is_unpacked_at_a_time(width: int, columns: int) -> None:
    """64 column tiles are unpacked at a time, less those of a group that would be cut. Sizes as they are in use."""
    eight = matrix("int8, a scale a row", 160, columns)
    scale = np.random.default_rng(0).uniform(0.001, 0.01, (160, columns // width)).astype(np.float32)
    w = QuantisedMatrix(eight.shape, 8, eight.codes, (1, width), scale)
    x = draw(65, columns)
    with simulated():
        y = AmxQuantisedMatrix(w, parts=1).product(as_bfloat16_numbers(x))
    assert nmse(y, as_bfloat16_numbers(x), entries(w)) <= 1e-12


def as_bfloat16_numbers(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("kind", TAKEN)
def test_every_code_has_its_value(kind: str) -> None:
    """x picks every fifth column. The products are the entries: a code less its zero, times its scale."""
    w = matrix(kind, 160, 256)
    w.codes.view(np.uint8)[:] = np.arange(160)[:, None] + np.arange(w.codes.shape[1])
    if kind.startswith("float8"):
        w.codes.view(np.uint8)[w.codes.view(np.uint8) & 0x7F == 0x7F] = 0  # NaN
    with simulated():
        picked = AmxQuantisedMatrix(w).product(np.eye(256, dtype=np.float32)[::5])
    np.testing.assert_array_equal(picked.T, w.rows(0, 160)[:, ::5])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", SOME)
def test_a_row_has_the_same_bits_whatever_the_number_and_position_of_rows(kind: str, parts: int, amx: None) -> None:
    x, ours = draw(max(ROWS), 256), AmxQuantisedMatrix(matrix(kind, 64, 256), parts)
    expected = in_order(ours, x)
    for rows in ROWS:
        for begin in {0, int(np.random.default_rng(rows).integers(0, max(ROWS) - rows + 1))}:
            y = ours.product(x[begin : begin + rows])
            np.testing.assert_array_equal(y, expected[begin : begin + rows], err_msg=f"{rows} rows from {begin}")


def in_order(ours: AmxQuantisedMatrix, x: np.ndarray) -> np.ndarray:
    """What AMX must give, bit by bit: the sums of the spans of columns that are added up, scaled and added in order.

    The codes less their zeros are a matrix in bfloat16, whose product `product_in_order` knows.
    """
    w, y = ours.w, np.zeros((len(x), len(ours)), np.float64)
    width = min(32 * ours._depth, w.group[1])
    is_float8 = w.codes.dtype.kind == "V"  # the kernel has 1/256 of their values, and 256 times the scale
    ones = np.full(w.scale.shape, 1 / 256 if is_float8 else 1, np.float32)
    codes = QuantisedMatrix(w.shape, w.bits, w.codes, w.group, ones, w.zero).rows(0, len(w))
    for begin in range(0, w.shape[1], width):
        columns = slice(begin, begin + width)
        sums = product_in_order(np.ascontiguousarray(x[:, columns]), as_bfloat16(codes[:, columns]), ours.parts)
        scale = w.scale[:, begin // w.group[1]].astype(np.float64) * (256 if is_float8 else 1)
        y = (y + sums * scale).astype(np.float32).astype(np.float64)  # rounded once, as by one instruction
    return y.astype(np.float32)


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    rounded = np.ascontiguousarray(values.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(rounded.astype(np.float32), values)
    return rounded


@pytest.mark.parametrize("height", [3, 128, 1000])
def test_rows_may_share_a_scale(height: int, amx: None) -> None:
    x, w = draw(2, 512), matrix("float8, groups of 128", 288, 512, height=height)
    assert nmse(AmxQuantisedMatrix(w).product(x), x, entries(w)) <= 1e-13


def test_one_part_is_the_product_of_x_rounded_to_bfloat16(amx: None) -> None:
    x, w = draw(5, 256), matrix(SOME[3], 32, 256)
    rounded = AmxQuantisedMatrix(w, 3).product(as_bfloat16_numbers(x))
    np.testing.assert_array_equal(AmxQuantisedMatrix(w, 1).product(x), rounded)


def test_several_matrices_by_one_x_and_no_rows_at_all(amx: None) -> None:
    x, ws = draw(18, 256), [AmxQuantisedMatrix(matrix(SOME[3], n, 256, n)) for n in (32, 160, 64)]
    with mock.patch.object(amx_kernels, "pack", wraps=amx_kernels.pack) as pack:
        ys = linears(x, *ws)
        assert sum(call.args[4] - call.args[3] for call in pack.call_args_list) == 256 // 32
    for w, y in zip(ws, ys, strict=True):
        np.testing.assert_array_equal(y, linear(x, w))
        assert linear(x[:0], w).shape == (0, len(w))


@pytest.mark.parametrize("rows", [5, 70])
def test_strided_x_mapped_codes_and_any_number_of_threads_give_the_same_bits(
    rows: int, amx: None, tmp_path: Path
) -> None:
    x, w = draw(rows, 256), matrix(SOME[0], 160, 256)
    expected = AmxQuantisedMatrix(w).product(x)
    (tmp_path / "file").write_bytes(b"odd" + w.codes.tobytes())
    mapped = np.memmap(tmp_path / "file", np.int8, "r", offset=3, shape=w.shape)
    for threads in [1, 2, 3]:
        with threadpool_limits(threads, user_api="blas"):
            ours = AmxQuantisedMatrix(QuantisedMatrix(w.shape, 8, mapped, w.group, w.scale))
            np.testing.assert_array_equal(ours.product(np.asfortranarray(x)), expected)


def test_what_does_not_fit_is_refused() -> None:
    eight, four = matrix(SOME[0], 32, 4096), matrix(SOME[3], 32, 4096)
    many = np.full((32, 32), 129, np.int16)
    unsigned = matrix("uint8, zero 128", 32, 256)

    def with_zero(zero: int | np.ndarray) -> QuantisedMatrix:
        return QuantisedMatrix((32, 256), 8, unsigned.codes, (1, 256), unsigned.scale, zero)

    for w in (
        matrix(SOME[0], 48, 256),
        matrix(SOME[0], 32, 48),
        matrix("int4, groups of 16", 32, 256),
        matrix("table, groups of 64", 32, 256),
        QuantisedMatrix((32, 8192), 8, np.zeros((32, 8192), np.int8), (1, 4096), np.ones((32, 2), np.float32)),
        QuantisedMatrix((32, 4096), 8, eight.codes, (1, 4096), eight.scale, -129),
        QuantisedMatrix((32, 4096), 8, eight.codes, (1, 4096), eight.scale, 129),
        QuantisedMatrix((32, 4096), 4, four.codes, (1, 128), four.scale, many),
        *(with_zero(zero) for zero in (-2, 257, np.full((32, 1), -2), np.full((32, 1), 257))),
    ):
        assert not fits_amx_quantised(w)
        with simulated(), pytest.raises(AssertionError):
            AmxQuantisedMatrix(w)
    for w in (eight, four, *(with_zero(zero) for zero in (-1, 256, np.full((32, 1), -1)))):
        assert fits_amx_quantised(w)


COMPILE = "amx_quantised_kernels.kernel({kind}, {zeros}, '{scale}')"


@pytest.mark.parametrize(
    ("kind", "zeros", "scale"), [(0, 0, "bfloat16"), (1, 2, "float16"), (2, 0, "float32"), (3, 1, "bfloat16")]
)
def test_compiled_for_sapphire_rapids_the_kernel_keeps_its_tiles_in_registers(
    kind: int, zeros: int, scale: str, tmp_path: Path
) -> None:
    """See `test_linear_amx.py`. Here codes become floats, so conversions are not counted."""
    tiles = {"tilezero": "0 1 2 3", "tileloadd": "4 5 6 7", "tdpbf16ps": "046 156 247 357", "tilestored": "0 1 2 3"}
    expected = {(name, each) for name, numbers in tiles.items() for each in numbers.split()}
    (found,) = assembly_of([COMPILE.format(kind=kind, zeros=zeros, scale=scale)], tmp_path)
    names = {key for key in found if "cvt" not in key[0]}
    assert names == expected | {("ldtilecfg", ""), ("tilerelease", "")}
    assert found["ldtilecfg", ""] == found["tilerelease", ""] == 1
    assert found["tileloadd", "6"] == found["tdpbf16ps", "046"] == found["tdpbf16ps", "156"]
    assert found["tileloadd", "7"] == found["tdpbf16ps", "247"] == found["tdpbf16ps", "357"]


@needs_amx
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("kind", SOME)
def test_the_cpu_gives_the_simulators_bits(kind: str, parts: int) -> None:
    """W has more column tiles than are unpacked at a time."""
    columns = 32 * (amx_quantised_kernels.DEPTH + 4)
    x, ours = draw(max(ROWS), columns), AmxQuantisedMatrix(matrix(kind, 160, columns), parts)
    expected = in_order(ours, x)
    for rows in ROWS:
        np.testing.assert_array_equal(ours.product(x[:rows]), expected[:rows])
