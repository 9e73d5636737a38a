"""The tiled product against float64: every dtype and shape, threads, forks, and which bits do not change."""

import contextlib
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from llama3.model import linear as module
from llama3.model import threads
from llama3.model.linear import FEW, MANY, MANY_TILE_ROWS, SMALL_TILE, TILE_ROWS, linear, linears

DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32]
new_pool = mock.patch.object(threads, "_workers", None)  # which finds every BLAS that is loaded by now
small_tiles = mock.patch.multiple(module, SMALL_TILE=512, TILE_ROWS=8, MANY_TILE_ROWS=16)  # small matrices have many


def draw(rows: int, columns: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32).astype(dtype)


def worst_error(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> float:
    """The largest error against float64, each entry relative to the sum of its terms' magnitudes."""
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    scale = np.abs(x64) @ np.abs(w64).T
    return float(np.max(np.abs(y - x64 @ w64.T) / np.maximum(scale, 1e-300), initial=0))


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@settings(deadline=None, max_examples=150)
@given(
    rows=st.sampled_from([0, 1, 2, FEW, FEW + 1, 7, 64, 65, MANY - 1, MANY]),
    out=st.sampled_from([0, 1, 2, 7, 8, 9, 63, 64, 65, 129, 1000]),
    columns=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 100]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 2),
)
def test_equals_the_float64_product(rows: int, out: int, columns: int, dtype: Any, seed: int) -> None:
    x, w = draw(rows, columns, seed=seed), draw(out, columns, dtype, seed + 1)
    with small_tiles:
        y = linear(x, w)
    assert y.dtype == np.float32 and y.shape == (rows, out) and y.flags.c_contiguous
    assert worst_error(x, w, y) <= 1e-6


@pytest.mark.parametrize(
    ("rows", "height"),
    [(1, SMALL_TILE // 1024), (FEW, SMALL_TILE // 1024), (FEW + 1, TILE_ROWS), (MANY, MANY_TILE_ROWS)],
)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_tiles_of_full_size_meet_without_a_gap(rows: int, height: int, beyond: int) -> None:
    x, w = draw(rows, 1024), draw(2 * height + beyond, 1024, ml_dtypes.bfloat16, seed=1)
    assert worst_error(x, w, linear(x, w)) <= 1e-6


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("rows", [1, 7])
def test_every_16_bit_pattern_is_converted_exactly(dtype: Any, rows: int) -> None:
    """Each 16-bit pattern is one row of w, and x is 1. Subnormals, both zeros, infinities and NaN are among them."""
    bits = np.arange(2**16, dtype=np.uint16)
    if dtype is np.float16:
        expected = struct.unpack("=65536e", bits.tobytes())
    else:
        expected = struct.unpack("=65536f", (bits.astype(np.uint32) << 16).tobytes())
    with small_tiles, warnings.catch_warnings(action="ignore"):  # NumPy remarks on signalling NaNs
        y = linear(np.ones((rows, 1), np.float32), bits.view(dtype)[:, None])
    np.testing.assert_array_equal(y, np.tile(np.array(expected), (rows, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7])
def test_strided_and_mapped_weights_give_the_same_product(dtype: Any, rows: int, tmp_path: Path) -> None:
    x, w = draw(rows, 40), draw(100, 40, dtype, seed=1)
    (tmp_path / "file").write_bytes(b"odd" + w.tobytes())
    views = {
        "mapped read-only, at an odd address": np.memmap(tmp_path / "file", dtype, "r", offset=3, shape=w.shape),
        "transposed": np.ascontiguousarray(w.T).T,
        "every second row and column": np.repeat(np.repeat(w, 2, axis=0), 2, axis=1)[::2, ::2],
        "reversed": np.ascontiguousarray(w[::-1, ::-1])[::-1, ::-1],
        "some of the columns": np.concatenate([w, w], axis=1)[:, 40:],
    }
    for name, view in views.items():
        with small_tiles:
            assert worst_error(x, w, linear(x, view)) <= 1e-6, name
            assert worst_error(x, w, linear(np.asfortranarray(x), view)) <= 1e-6, name


def test_a_float64_input_is_refused() -> None:
    with pytest.raises(AssertionError, match="float64"):
        linear(np.ones((1, 8)), np.ones((8, 8), np.float32))


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, MANY])
@pytest.mark.parametrize("tiles", [small_tiles, contextlib.nullcontext()], ids=["many tiles", "a single one"])
def test_neither_the_call_nor_the_number_of_threads_changes_a_bit(rows: int, tiles: Any) -> None:
    x, w = draw(rows, 500), draw(250, 500, ml_dtypes.bfloat16, seed=1)
    with tiles:
        first = linear(x, w)
        for threads in [1, 2, 2, 3]:
            with threadpool_limits(threads, user_api="blas"):
                np.testing.assert_array_equal(linear(x, w), first)


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, MANY])
def test_float32_weights_of_the_same_values_give_the_same_bits(rows: int) -> None:
    x, w = draw(rows, 100), draw(1001, 100, ml_dtypes.bfloat16, seed=1)
    with small_tiles:
        np.testing.assert_array_equal(linear(x, w), linear(x, w.astype(np.float32)))


def test_several_matrices_at_once_give_the_same_bits_as_one_by_one() -> None:
    x, ws = draw(3, 100), [draw(n, 100, ml_dtypes.bfloat16, seed=n) for n in (1001, 8, 64)]
    for w, y in zip(ws, linears(x, *ws), strict=True):
        np.testing.assert_array_equal(y, linear(x, w))


def test_blas_has_one_thread_during_a_shared_product_and_its_own_number_afterwards() -> None:
    seen = []
    both = threading.Barrier(2)

    def watch(*arguments: Any) -> None:
        both.wait(60)
        seen.append(blas_threads())
        multiply(*arguments)

    multiply = module._multiply
    x, w = draw(1, 100), draw(1001, 100, seed=1)
    with threadpool_limits(2, user_api="blas"), small_tiles, mock.patch.object(module, "_multiply", watch), new_pool:
        before = blas_threads()
        linear(x, w)
        assert blas_threads() == before == [2] * len(before)
    assert seen == [[1] * len(before)] * 2


@pytest.mark.parametrize("n", [1, 4, 63, 64, 65, 1000])
@pytest.mark.parametrize("most", [0, 4, 10, 10**6])
def test_slices_cover_all_rows_once_and_each_thread_can_take_several(n: int, most: int) -> None:
    taken: list[slice] = []
    with threadpool_limits(2, user_api="blas"), new_pool:
        threads.share(taken.extend, n, 4, most)
    taken.sort(key=lambda rows: rows.start)
    assert [i for rows in taken for i in range(rows.start, rows.stop)] == list(range(n))
    length = taken[0].stop - taken[0].start
    assert length == n or (length % 4 == 0 and length <= max(4, most))
    assert len(taken) >= min(-(-n // 4), 2 * threads.SLICES)


@pytest.mark.parametrize("where", ["calling thread", "other thread"])
def test_an_exception_arrives_and_blas_has_its_threads_again(where: str) -> None:
    both = threading.Barrier(2)

    def fail(*arguments: Any) -> None:
        both.wait(60)
        if (threading.current_thread() is caller) == (where == "calling thread"):
            raise KeyboardInterrupt

    caller = threading.current_thread()
    x, w = draw(1, 100), draw(1001, 100, seed=1)
    with threadpool_limits(2, user_api="blas"), small_tiles:
        before = blas_threads()
        with mock.patch.object(module, "_multiply", fail), pytest.raises(KeyboardInterrupt):
            linear(x, w)
        assert blas_threads() == before
        assert worst_error(x, w, linear(x, w)) <= 1e-6


def test_calls_from_many_threads_give_the_right_products() -> None:
    w = draw(1001, 100, ml_dtypes.bfloat16, seed=1)
    xs = [draw(1 + i % 9, 100, seed=i) for i in range(64)]
    with threadpool_limits(2, user_api="blas"), small_tiles, ThreadPoolExecutor(4) as callers:
        before = blas_threads()
        for x, y in zip(xs, callers.map(lambda x: linear(x, w), xs)):
            np.testing.assert_array_equal(y, linear(x, w))
        assert blas_threads() == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_forked_child_multiplies_and_the_threads_keep_no_process_alive() -> None:
    program = """
import os, sys
import numpy as np
from threadpoolctl import threadpool_limits
from llama3.model import linear as module
module.SMALL_TILE = 512
x, w = np.ones((1, 100), np.float32), np.ones((1001, 100), np.float32)
with threadpool_limits(2, user_api="blas"):
    assert (module.linear(x, w) == 100).all()
    child = os.fork()
    assert (module.linear(x, w) == 100).all()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=root, timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
