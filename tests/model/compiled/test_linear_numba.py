"""numba's kernels against the float64 product, and which bits do not change."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from llama3.model.compiled import linear_numba as module
from llama3.model.compiled.linear_numba import MOST_ROWS, NumbaMatrix
from llama3.model.linear import linear
from tests.model.test_linear import draw, worst_error

small_steps = mock.patch.multiple(module, STEP=512, MOST=512)  # so that small matrices have many


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(0, MOST_ROWS + 2),
    out=st.sampled_from([4, 8, 64, 68, 1000]),
    columns=st.sampled_from([16, 32, 48, 64, 96, 112]),
    seed=st.integers(0, 2**32 - 2),
)
def test_equals_the_float64_product(rows: int, out: int, columns: int, seed: int) -> None:
    x, w = draw(rows, columns, seed=seed), draw(out, columns, ml_dtypes.bfloat16, seed + 1)
    with small_steps:
        y = linear(x, NumbaMatrix(w))
    assert y.dtype == np.float32 and y.shape == (rows, out)
    assert worst_error(x, w, y) <= 1e-6


@pytest.mark.parametrize("rows", [1, 2, 3, MOST_ROWS])
def test_every_bfloat16_is_converted_exactly(rows: int) -> None:
    """Each 16-bit pattern stands in one row of w, and x is 1. Subnormals, zeros, infinities and NaN are among them."""
    bits = np.zeros((2**16, 16), np.uint16)
    bits[np.arange(2**16), np.arange(2**16) % 16] = np.arange(2**16)
    y = NumbaMatrix(bits.view(ml_dtypes.bfloat16)).product(np.ones((rows, 16), np.float32))
    np.testing.assert_array_equal(y, np.tile((np.arange(2**16, dtype=np.uint32) << 16).view(np.float32), (rows, 1)))


@pytest.mark.parametrize("rows", [1, 2, 5, MOST_ROWS])
def test_the_number_of_threads_does_not_change_a_bit(rows: int) -> None:
    x, w = draw(rows, 112), NumbaMatrix(draw(1000, 112, ml_dtypes.bfloat16, seed=1))
    with small_steps:
        first = w.product(x)
        for threads in [1, 2, 3, 8]:
            with threadpool_limits(threads, user_api="blas"):
                np.testing.assert_array_equal(w.product(x), first)


def test_a_row_s_bits_do_not_depend_on_the_others() -> None:
    x, w = draw(MOST_ROWS, 112), NumbaMatrix(draw(1000, 112, ml_dtypes.bfloat16, seed=1))
    together = w.product(x)
    for rows in range(1, MOST_ROWS):
        np.testing.assert_array_equal(w.product(x[-rows:]), together[-rows:])


def test_weights_may_be_mapped_read_only_and_x_may_be_strided(tmp_path: Path) -> None:
    x, w = draw(3, 48), draw(100, 48, ml_dtypes.bfloat16, seed=1)
    (tmp_path / "file").write_bytes(w.tobytes())
    mapped = NumbaMatrix(np.memmap(tmp_path / "file", ml_dtypes.bfloat16, "r", shape=w.shape))
    np.testing.assert_array_equal(mapped.product(np.asfortranarray(x)), NumbaMatrix(w).product(x))


def test_eight_threads_at_once_get_the_right_products() -> None:
    w = NumbaMatrix(draw(1000, 112, ml_dtypes.bfloat16, seed=1))
    xs = [draw(1 + i % 9, 112, seed=i) for i in range(64)]
    with small_steps, ThreadPoolExecutor(8) as callers:
        for x, y in zip(xs, callers.map(w.product, xs)):
            np.testing.assert_array_equal(y, w.product(x))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_forked_child_computes_the_same_model() -> None:
    """Attention, too, and while another thread of the parent generates."""
    program = """
import os, sys, threading
from llama3 import Llama
llama = Llama.load(linear="numba", slots=2)
expected = llama.generate("The KV cache", max_tokens=5, temperature=0).text
thread = threading.Thread(target=lambda: llama.generate("RoPE " * 300, max_tokens=20), daemon=True)
thread.start()
for _ in range(5):
    child = os.fork()
    same = llama.generate("The KV cache", max_tokens=5, temperature=0).text == expected
    if not child:
        os._exit(not same)
    if not same or os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=root, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_float64_input_is_refused() -> None:
    with pytest.raises(AssertionError, match="float64"):
        NumbaMatrix(np.ones((16, 16), ml_dtypes.bfloat16)).product(np.ones((1, 16)))


def test_what_does_not_fit_is_refused() -> None:
    w = draw(64, 64, ml_dtypes.bfloat16)
    for other in (w.T, w[::2], w[:6], w[:, :16], w[:, :24].copy(), w[:0], w[0], w.astype(np.float32)):
        with pytest.raises(AssertionError):
            NumbaMatrix(other)
