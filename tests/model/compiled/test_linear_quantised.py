"""The kernels for 8 and 4 bits against the float64 product of a matrix's entries, and which bits do not change."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from llama3.model.compiled import linear_numba
from llama3.model.compiled import quantised_kernels as kernels
from llama3.model.compiled.fits import fits_quantised
from llama3.model.compiled.linear_numba import MOST_ROWS
from llama3.model.compiled.linear_quantised import NumbaQuantisedMatrix
from llama3.model.linear import MANY, linear, linears
from llama3.model.lora import LoraMatrix, LoraPair
from llama3.model.quantised import QuantisedMatrix
from tests.model.test_linear import draw, worst_error

BF16, F16, F32 = ml_dtypes.bfloat16, np.float16, np.float32
small_steps = mock.patch.multiple(linear_numba, STEP=512, MOST=512)  # so that small matrices have many
Codes = Callable[[np.random.Generator, int, int], np.ndarray]


def float8(rng: np.random.Generator, out: int, columns: int) -> np.ndarray:
    codes = rng.integers(0, 256, (out, columns), np.uint8)
    codes[codes & 0x7F == 0x7F] = 0  # NaN
    return codes.view(ml_dtypes.float8_e4m3fn)


CODES: dict[str, Codes] = {
    "int8": lambda rng, out, columns: rng.integers(-128, 128, (out, columns), np.int8),
    "uint8": lambda rng, out, columns: rng.integers(0, 256, (out, columns), np.uint8),
    "float8": float8,
    "int4": lambda rng, out, columns: rng.integers(0, 256, (out, columns // 2), np.uint8),
}
# The kind of codes, columns that share a scale (None: all), the scale's dtype, the zero ("each": one for each scale).
KINDS = {
    "int8, a scale a row": ("int8", None, BF16, 0),
    "int8, groups of 32": ("int8", 32, F32, 0),
    "uint8, zero 128": ("uint8", None, F16, 128),
    "uint8, groups of 64, zeros": ("uint8", 64, BF16, "each"),
    "float8, a scale a row": ("float8", None, BF16, 0),
    "float8, groups of 128": ("float8", 128, F32, 0),
    "int4, groups of 128": ("int4", 128, BF16, 8),
    "int4, groups of 128, zeros": ("int4", 128, F16, "each"),
    "int4, groups of 64": ("int4", 64, F16, 8),
    "int4, groups of 32, zeros": ("int4", 32, BF16, "each"),
    "int4, groups of 16": ("int4", 16, F32, 8),
    "int4, a scale a row": ("int4", None, F32, 8),
    "int4, a scale and a zero a row": ("int4", None, BF16, "each"),
    "table, groups of 64": ("int4", 64, F32, "table"),
    "table, groups of 256": ("int4", 256, F32, "table"),
}
SOME = ["int8, a scale a row", "int8, groups of 32", "int4, groups of 128", "int4, groups of 32, zeros"]
by_kind = pytest.mark.parametrize("kind", KINDS)
by_some = pytest.mark.parametrize("kind", SOME)


def matrix(kind: str, out: int, columns: int, seed: int = 0, height: int = 1) -> QuantisedMatrix:
    codes, width, dtype, zero = KINDS[kind]
    width, table = width or columns, None
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.001, 0.01, (-(-out // height), columns // width)).astype(dtype)
    if zero == "each":
        bits = 4 if codes == "int4" else 8
        zero = rng.integers(0, 2**bits, scale.shape, np.uint8)
    elif zero == "table":
        zero, table = 0, np.sort(rng.standard_normal(16)).astype(F32)
    values = CODES[codes](rng, out, columns)
    return QuantisedMatrix((out, columns), 4 if codes == "int4" else 8, values, (height, width), scale, zero, table)


@by_kind
@settings(deadline=None, max_examples=20)
@given(
    rows=st.sampled_from([*range(MOST_ROWS + 2), MANY]),
    out=st.sampled_from([4, 8, 68, 100]),
    columns=st.sampled_from([256, 512, 768]),
    seed=st.integers(0, 2**32 - 2),
)
def test_equals_the_float64_product(kind: str, rows: int, out: int, columns: int, seed: int) -> None:
    x, w = draw(rows, columns, seed=seed), matrix(kind, out, columns, seed)
    with small_steps:
        y = linear(x, NumbaQuantisedMatrix(w))
    assert y.dtype == np.float32 and y.shape == (rows, out)
    assert worst_error(x, w.rows(0, out), y) <= 1e-6


@by_kind
def test_every_code_has_its_value(kind: str) -> None:
    """x picks one column after the other. With a scale for each group, the products are the entries, bit for bit."""
    w = matrix(kind, 256, 256)
    w.codes.view(np.uint8)[:] = np.arange(256)[:, None] + np.arange(w.codes.shape[1])
    if kind.startswith("float8"):
        w.codes.view(np.uint8)[w.codes.view(np.uint8) & 0x7F == 0x7F] = 0  # NaN
    product = NumbaQuantisedMatrix(w).product
    picked = np.vstack([product(rows) for rows in np.split(np.eye(256, dtype=np.float32), 8)])
    np.testing.assert_array_equal(picked.T, w.rows(0, 256))


@pytest.mark.parametrize("height", [3, 128, 1000])
def test_rows_may_share_a_scale(height: int) -> None:
    x, w = draw(2, 512), matrix("float8, groups of 128", 260, 512, height=height)
    assert worst_error(x, w.rows(0, 260), NumbaQuantisedMatrix(w).product(x)) <= 1e-6


@by_some
def test_the_number_of_threads_does_not_change_a_bit(kind: str) -> None:
    x, w = draw(5, 256), NumbaQuantisedMatrix(matrix(kind, 1000, 256))
    with small_steps:
        first = w.product(x)
        for threads in [1, 2, 3, 8]:
            with threadpool_limits(threads, user_api="blas"):
                np.testing.assert_array_equal(w.product(x), first)


@by_some
def test_a_row_s_bits_do_not_depend_on_the_others(kind: str) -> None:
    x, w = draw(MOST_ROWS, 512), NumbaQuantisedMatrix(matrix(kind, 100, 512))
    together = w.product(x)
    for rows in range(1, MOST_ROWS):
        np.testing.assert_array_equal(w.product(x[-rows:]), together[-rows:])


@by_some
def test_codes_and_scales_may_be_mapped_read_only_at_odd_addresses_and_x_may_be_strided(
    kind: str, tmp_path: Path
) -> None:
    x, w = draw(3, 256), matrix(kind, 100, 256)

    def mapped(name: str, array: Any) -> Any:
        (tmp_path / name).write_bytes(b"." + array.tobytes())
        return np.memmap(tmp_path / name, array.dtype, "r", 1, array.shape)

    codes, scale = mapped("codes", w.codes), mapped("scale", w.scale)
    odd = NumbaQuantisedMatrix(QuantisedMatrix(w.shape, w.bits, codes, w.group, scale, w.zero))
    np.testing.assert_array_equal(odd.product(np.asfortranarray(x)), NumbaQuantisedMatrix(w).product(x))


@by_some
def test_eight_threads_at_once_get_the_right_products(kind: str) -> None:
    w = NumbaQuantisedMatrix(matrix(kind, 1000, 256))
    xs = [draw(1 + i % 9, 256, seed=i) for i in range(32)]
    with small_steps, ThreadPoolExecutor(8) as callers:
        for x, y in zip(xs, callers.map(w.product, xs)):
            np.testing.assert_array_equal(y, w.product(x))


def test_matrices_of_several_kinds_share_x() -> None:
    x, some = draw(3, 256), [NumbaQuantisedMatrix(matrix(kind, 64, 256)) for kind in SOME]
    for w, y in zip(some, linears(x, *some)):
        np.testing.assert_array_equal(y, w.product(x))


def test_an_adapter_is_added() -> None:
    x, w = draw(3, 256), NumbaQuantisedMatrix(matrix(SOME[2], 64, 256))
    pair = LoraPair(draw(8, 256, seed=1), draw(64, 8, seed=2))
    expected = w.product(x)
    expected[1:] += x[1:] @ pair.a.T @ pair.b.T
    y = linear(x, LoraMatrix(w, [(np.array([1, 2]), pair)]))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX-512 is of x86-64")
def test_a_cpu_without_avx_512_computes_the_same() -> None:
    """A table of values of its own is left to NumPy there."""
    program = """
import numpy as np
from llama3.model.compiled.linear_quantised import NumbaQuantisedMatrix
from llama3.model.compiled.quantised_kernels import AVX512
from tests.model.compiled.test_linear_quantised import SOME, matrix
from tests.model.test_linear import draw, worst_error
assert not AVX512
for kind in [*SOME, "table, groups of 64"]:
    x, w = draw(5, 512), matrix(kind, 64, 512)
    ours = NumbaQuantisedMatrix(w)
    assert (ours._kernel is None) == (w.table is not None)
    assert worst_error(x, w.rows(0, 64), ours.product(x)) <= 1e-6, kind
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+avx,+fma,+f16c,+sse4.2"}
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_float16_is_left_to_numpy_where_the_cpu_cannot_convert_it() -> None:
    x = draw(5, 512)
    with mock.patch.object(kernels, "HALVES", False):
        for kind, compiled in (("float8, a scale a row", False), ("uint8, zero 128", True)):
            w = matrix(kind, 64, 512)
            ours = NumbaQuantisedMatrix(w)
            assert (ours._kernel is not None) == compiled
            assert worst_error(x, w.rows(0, 64), ours.product(x)) <= 1e-6


def test_a_float64_input_is_refused() -> None:
    with pytest.raises(AssertionError, match="float64"):
        NumbaQuantisedMatrix(matrix(SOME[0], 16, 256)).product(np.ones((1, 256)))


def test_what_does_not_fit_is_refused() -> None:
    eight, four, float8s = (matrix(kind, 8, 256) for kind in (SOME[0], SOME[2], "float8, a scale a row"))
    for w in (
        matrix(SOME[0], 6, 256),
        matrix(SOME[0], 8, 24),
        matrix("int4, a scale a row", 8, 192),
        QuantisedMatrix((8, 256), 8, np.asfortranarray(eight.codes), (1, 256), eight.scale),
        QuantisedMatrix((8, 256), 8, eight.codes, (1, 96), eight.scale),
        QuantisedMatrix((8, 256), 4, four.codes, (1, 24), four.scale, 8),
        QuantisedMatrix((8, 256), 8, eight.codes.astype(np.int16), (1, 256), eight.scale),
        QuantisedMatrix((8, 256), 8, float8s.codes, (1, 256), float8s.scale, 1),
    ):
        assert not fits_quantised(w)
        with pytest.raises(AssertionError):
            NumbaQuantisedMatrix(w)
