"""The product on AMX tiles, in a simulator of the instructions: accuracy, equal bits, odd numbers, and what AMX asks.

On a CPU with AMX, the compiled kernels must give the simulator's bits.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from llama3.model.compiled import linear_amx
from llama3.model.compiled.aligned import aligned
from llama3.model.compiled.fits import fits
from llama3.model.compiled.linear_amx import AmxMatrix, missing
from llama3.model.linear import linear, linears

pytest.importorskip("numba", reason="numba is not installed")

from llama3.model.compiled import amx_kernels
from tests.model.compiled.amx_simulator import AmxError, Tiles, product_in_order, simulated, widened

needs_amx = pytest.mark.skipif(missing() is not None, reason=f"no AMX: {missing()}")
ROWS = [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 96, 97]


def draw(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def weights(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return draw(rows, columns, seed).astype(ml_dtypes.bfloat16)


def nmse(y: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    return float(np.sum((y - exact) ** 2) / np.sum(exact**2))


@pytest.fixture(params=["simulated", pytest.param("on this CPU", marks=needs_amx)])
def amx(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to run the kernels, with so small slices that a matrix has several."""
    cpu = simulated() if request.param == "simulated" else nullcontext()
    with cpu, mock.patch.multiple(linear_amx, BLOCK=32, SLICE=2048, PACKED=2**11):
        yield


@settings(max_examples=12)
@given(rows=st.integers(1, 200), out=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_three_parts_are_as_accurate_as_float32(rows: int, out: int, columns: int, seed: int) -> None:
    x, w = draw(rows, 32 * columns, seed), weights(32 * out, 32 * columns, seed + 1)
    with simulated(), mock.patch.multiple(linear_amx, BLOCK=64):
        y = AmxMatrix(w).product(x)
    assert y.dtype == np.float32 and y.shape == (rows, 32 * out) and y.flags.c_contiguous
    assert nmse(y, x, w) <= max(2 * nmse(x @ w.astype(np.float32).T, x, w), 1e-14)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_row_has_the_same_bits_whatever_the_number_and_position_of_rows(parts: int, amx: None) -> None:
    """Those of the definition of every entry on its own. W has several blocks of rows and of columns."""
    x, w = draw(max(ROWS), 96), weights(64, 96)
    expected = product_in_order(x, w, parts)
    matrix = AmxMatrix(w, parts)
    with mock.patch.object(amx_kernels, "DEPTH", 2):
        for rows in ROWS:
            for begin in {0, int(np.random.default_rng(rows).integers(0, max(ROWS) - rows + 1))}:
                y = matrix.product(x[begin : begin + rows])
                np.testing.assert_array_equal(y, expected[begin : begin + rows], err_msg=f"{rows} rows from {begin}")


@pytest.mark.parametrize(("parts", "least", "most"), [(1, 1e-7, 1e-5), (2, 1e-13, 1e-10), (3, 0, 1e-13)])
def test_each_part_adds_eight_bits(parts: int, least: float, most: float, amx: None) -> None:
    x, w = draw(17, 512), weights(32, 512)
    assert least <= nmse(AmxMatrix(w, parts).product(x), x, w) <= most


def test_one_part_is_the_product_of_x_rounded_to_bfloat16(amx: None) -> None:
    x, w = draw(5, 96), weights(32, 96)
    as_bfloat16 = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(AmxMatrix(w, 1).product(x), AmxMatrix(w, 3).product(as_bfloat16))


def test_the_parts_of_every_kind_of_number_add_up_to_it() -> None:
    """Random bits: floats of every size down to 1e-33, infinities and NaNs, and the largest floats."""
    bits = np.random.default_rng(0).integers(0, 2**32, (8, 1024), dtype=np.uint32)
    bits[0, :8] = [0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0, 0x80000000]
    x = bits.view(np.float32)
    x[np.abs(x) < 1e-33] = 0
    packed = np.empty((1, 32, 3, 16, 16), np.uint32)
    amx_kernels.pack(x, packed, np.empty((32, 16), np.float32), 0, 32)
    parts = widened(packed.view(np.uint16)).reshape(32, 3, 16, 16, 2).transpose(1, 3, 0, 2, 4).reshape(3, 16, 1024)
    np.testing.assert_array_equal(parts[0, :8] + parts[1, :8] + parts[2, :8], x)  # NaN where x is NaN
    assert not parts[:, 8:].any()


def test_only_the_given_column_tiles_are_packed_and_missing_rows_are_zero() -> None:
    packed = np.full((4, 3, 1, 16, 16), 7, np.uint32)
    amx_kernels.pack(np.ones((19, 96), np.float32), packed, np.empty((32, 16), np.float32), 1, 3)
    assert (packed[:, 0] == 7).all()
    rows = packed[:, 1:].transpose(0, 4, 1, 2, 3).reshape(64, -1)
    assert (rows[:19] == 0x3F803F80).all() and not rows[19:].any()


@pytest.mark.parametrize("rows", [3, 20, 70])
def test_infinities_and_nans_of_x_come_out_as_from_numpy(rows: int, amx: None) -> None:
    x, w = draw(rows, 64), weights(32, 64)
    w[5] = 0
    x[0, 7], x[1, 40], x[2, 3] = np.inf, -np.inf, np.nan
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(AmxMatrix(w).product(x), x @ w.astype(np.float32).T, rtol=1e-4, atol=1e-4)


def test_the_largest_floats_stay_finite_but_with_one_part(amx: None) -> None:
    x, w = np.zeros((1, 32), np.float32), np.ones((32, 32), ml_dtypes.bfloat16)
    x[0, 0] = 3.4e38
    for parts, expected, error in ((3, x[0, 0], 0), (2, x[0, 0], 2**-15), (1, np.inf, 0)):
        np.testing.assert_allclose(AmxMatrix(w, parts).product(x), np.full((1, 32), expected), rtol=error)


def test_an_infinite_weight_gives_nan(amx: None) -> None:
    """As the module says: the later parts of x may be 0, and 0 times infinity is NaN."""
    x, w = np.ones((1, 32), np.float32), weights(32, 32)
    w[3, 3] = np.inf
    y = AmxMatrix(w).product(x)
    assert np.isnan(y[0, 3]) and np.isfinite(np.delete(y, 3)).all()


def test_numbers_below_the_normal_range_count_as_zero(amx: None) -> None:
    tiny = np.full((1, 32), 1e-39, np.float32)
    w = np.full((32, 32), 1, ml_dtypes.bfloat16)
    assert not AmxMatrix(w).product(tiny).any()
    assert not AmxMatrix(np.full((32, 32), 1e-39, ml_dtypes.bfloat16)).product(np.ones_like(tiny)).any()
    small = draw(4, 32) * np.float32(1e-33)
    assert nmse(AmxMatrix(w).product(small), small, w) <= 1e-7  # the later parts are lost


def test_several_matrices_by_one_x_and_no_rows_at_all(amx: None) -> None:
    x, ws = draw(18, 64), [AmxMatrix(weights(n, 64, n)) for n in (32, 160, 64)]
    with mock.patch.object(amx_kernels, "pack", wraps=amx_kernels.pack) as pack:
        ys = linears(x, *ws)
        assert sum(call.args[4] - call.args[3] for call in pack.call_args_list) == 64 // 32
    for w, y in zip(ws, ys, strict=True):
        np.testing.assert_array_equal(y, linear(x, w))
        assert linear(x[:0], w).shape == (0, len(w.w))


@pytest.mark.parametrize("rows", [5, 70])
def test_strided_x_mapped_weights_and_any_number_of_threads_give_the_same_bits(
    rows: int, amx: None, tmp_path: Path
) -> None:
    x, w = draw(rows, 96), weights(160, 96)
    expected = AmxMatrix(w).product(x)
    (tmp_path / "file").write_bytes(b"even" + w.tobytes())
    mapped = np.memmap(tmp_path / "file", ml_dtypes.bfloat16, "r", offset=4, shape=w.shape)
    for threads in [1, 2, 3]:
        with threadpool_limits(threads, user_api="blas"):
            np.testing.assert_array_equal(AmxMatrix(mapped).product(np.asfortranarray(x)), expected)


def test_what_does_not_fit() -> None:
    w = weights(64, 64)
    odd = np.frombuffer(b"1" + w.tobytes(), ml_dtypes.bfloat16, offset=1).reshape(64, 64)
    assert fits(w, 32, 32) and fits(w[32:], 32, 32) and not fits(odd, 32, 32)
    for other in (w.T, w[::2], w[:48], w[:, :32], w[:, :48].copy(), w[:0], w[0], w.astype(np.float32)):
        assert not fits(other, 32, 32)
        with simulated(), pytest.raises(AssertionError):
            AmxMatrix(other)


@pytest.mark.parametrize(
    ("system", "flags", "refusal", "clause"),
    [
        ("Darwin", "", 0, "Linux on x86-64 only"),
        ("Linux", "fpu amx_tile amx_bf16_not", 0, "no amx_bf16"),
        ("Linux", "fpu amx_bf16", 1, r"Linux refuses AMX to this process \(arch_prctl: Operation not permitted\)"),
        ("Linux", "fpu amx_bf16", 0, "numba compiles for a CPU without AMX"),
    ],
)
def test_a_clause_says_what_is_missing(system: str, flags: str, refusal: int, clause: str) -> None:
    def syscall(number: int, *arguments: int) -> int:
        assert (number, *arguments) == (158, 0x1023, 18)
        ctypes.set_errno(refusal)
        return -refusal

    with (
        mock.patch("platform.system", return_value=system),
        mock.patch("platform.machine", return_value="x86_64"),
        mock.patch("builtins.open", mock.mock_open(read_data=f"processor : 0\nflags\t\t: {flags}\n")),
        mock.patch("ctypes.CDLL", return_value=mock.Mock(syscall=syscall)),
        mock.patch.object(amx_kernels, "compilable", lambda: False),
    ):
        assert re.search(clause, missing.__wrapped__() or "None")


def test_the_kernels_are_compiled_when_a_matrix_is_made_not_at_the_first_token() -> None:
    with simulated():
        names = ("pack", "few", "many")
        with mock.patch.multiple(amx_kernels, **{name: mock.Mock() for name in names}):
            AmxMatrix(weights(32, 32))
            for name in names:
                getattr(amx_kernels, name).compile.assert_called_once_with()


def test_without_amx_no_matrix_is_made_and_the_import_is_harmless() -> None:
    program = "import sys; from llama3.model.compiled.linear_amx import AmxMatrix; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    refusal = mock.patch.object(linear_amx, "missing", lambda: "the CPU has no AMX")
    with refusal, pytest.raises(AssertionError, match="no AMX"):
        AmxMatrix(weights(32, 32))


COMPILE = """
import re
from llama3.model.compiled import amx_kernels, amx_quantised_kernels
for kernel in ({}):
    (assembly,) = kernel.compile().inspect_asm().values()
    print(*re.findall(r"^\\s+(ldtile.*|sttile.*|tile.*|tdp.*|v?cvt.*)", assembly, re.M), sep="\\n", end="\\n\\n")
"""
KERNELS = {
    "few": {"tilezero": "0 1", "tileloadd": "4 5 6", "tdpbf16ps": "046 156", "tilestored": "0 1"},
    "many": {"tilezero": "0 1 2 3", "tileloadd": "0 1 2 3 4 5 6 7", "tdpbf16ps": "046 147 256 357"}
    | {"tilestored": "0 1 2 3 4"},
}


def assembly_of(kernels: list[str], folder: Path) -> list[Counter[tuple[str, str]]]:
    """How often the code of each kernel for Sapphire Rapids has each instruction on tiles, with each list of tiles.

    No tile is on the stack. numba needs the features because it would turn off what this CPU lacks, and an empty cache,
    `folder`, because it shows no assembly from there.
    """
    cpu = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": "+amx-tile,+amx-bf16"}
    environment = {**os.environ, **cpu, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", COMPILE.format(", ".join([*kernels, ""]))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = []
    for listing in run.stdout.strip().split("\n\n"):
        assert "(%rsp" not in listing
        counts = Counter[tuple[str, str]]()
        for line in listing.splitlines():
            name, _, operands = line.partition("\t")
            counts[name, "".join(reversed(re.findall(r"%tmm(\d)", operands)))] += 1
        found.append(counts)
    return found


def test_compiled_for_sapphire_rapids_the_kernels_keep_their_tiles_in_registers(tmp_path: Path) -> None:
    """The assembly has exactly the kernel's instructions on exactly its tiles.

    LLVM repeats the bodies of loops, but a load of x always has all its products. No address becomes a float on the
    way.
    """
    for found, kernel in zip(assembly_of(["amx_kernels.few", "amx_kernels.many"], tmp_path), KERNELS, strict=True):
        expected = {(name, tiles) for name, each in KERNELS[kernel].items() for tiles in each.split()}
        assert found.keys() == expected | {("ldtilecfg", ""), ("tilerelease", "")}
        assert found["ldtilecfg", ""] == found["tilerelease", ""] == 1
        once = [found["tileloadd", "6"], *(count for (name, _), count in found.items() if name == "tdpbf16ps")]
        assert len(set(once)) == 1, once


def test_the_simulator_refuses_what_is_wrong_or_slow() -> None:
    x, y, odd = (aligned((16, 16), np.uint32) for _ in range(3))
    w = aligned((16, 32), np.uint16)

    def refused(clause: str, *calls: tuple[Any, ...]) -> None:
        def py_func(*_: Any) -> None:
            tiles.ldtilecfg(amx_kernels.CONFIG.ctypes.data)
            for function, *arguments in calls:
                function(*arguments)

        with pytest.raises(AmxError, match=clause):
            tiles.run(mock.Mock(py_func=py_func), w, x, y)

    tiles = Tiles()
    load, store, zero = tiles.tileloadd, tiles.tilestored, tiles.tilezero
    refused("not released", (zero, 0))
    refused("read before it is set", (store, 0, y.ctypes.data, 64))
    refused("not a multiple of 64", (load, 0, x.ctypes.data + 4, 32))
    refused("in none", (load, 0, x.ctypes.data + 64, 64))
    refused("in none", (load, 0, odd.ctypes.data, 64))
    refused("which is input", (zero, 0), (store, 0, x.ctypes.data, 64))
    refused("tile 8", (zero, 8))
    refused("not configured", (tiles.tilerelease,), (zero, 0))
    refused("not valid", (tiles.ldtilecfg, x.ctypes.data))
    refused("must differ", (zero, 0), (zero, 1), (tiles.tdpbf16ps, 0, 0, 1))


@needs_amx
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_cpu_gives_the_simulators_bits(parts: int) -> None:
    """W has more column tiles than `many` multiplies at a time, and x has numbers of every size."""
    x, w = draw(max(ROWS), 32 * (amx_kernels.DEPTH + 1)), weights(160, 32 * (amx_kernels.DEPTH + 1))
    x *= np.exp2(np.random.default_rng(2).integers(-126, 100, (len(x), 1)))
    expected = product_in_order(x, w, parts)
    for rows in ROWS:
        np.testing.assert_array_equal(AmxMatrix(w, parts).product(x[:rows]), expected[:rows])
