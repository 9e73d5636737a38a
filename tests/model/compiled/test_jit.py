"""Kernels compiled by numba: nothing is compiled early, read-only arrays are accepted, and the cache is optional."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama3.model.compiled.jit import compiled

numba = pytest.importorskip("numba", reason="numba is not installed")


@compiled("int64(Array(uint16, 2, 'C', readonly=True), int64)")
def total(a: np.ndarray, row: int) -> int:
    s = 0
    for i in range(a.shape[1]):
        s += a[row, i]
    return s


def test_the_kernel_equals_its_python_function_for_writable_and_read_only_arrays() -> None:
    a = np.arange(12, dtype=np.uint16).reshape(3, 4)
    fixed = a.copy()
    fixed.flags.writeable = False
    assert total(a, 1) == total(fixed, 1) == total.py_func(a, 1) == 22
    assert len(total.compile().signatures) == 1


def test_an_array_of_another_type_is_refused_and_nothing_more_is_compiled() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        total(np.ones((3, 4), np.float32), 1)


PROGRAM = """
import sys
from llama3.model.compiled.jit import compiled
@compiled("int64(int64)")
def double(n):
    return 2 * n
assert "numba" not in sys.modules
assert double(21) == 42
print(double.compile().stats.cache_path)
"""


@pytest.mark.parametrize("writable", [True, False])
def test_without_a_folder_for_the_cache_the_kernel_compiles_in_memory(writable: bool, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "file").touch()  # numba tries __pycache__ beside the program, then a folder of its own in HOME
    home = tmp_path if writable else tmp_path / "file"
    if not writable:
        (tmp_path / "__pycache__").touch()
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(tmp_path / "program.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert (run.stdout.strip() != "None") == writable
