"""`llama3 doctor`: every check is made, however broken the installation is, and each says how to fix what it found."""

import sys

import pytest

from llama3.checkpoint import load_folder
from llama3.cli import main
from llama3.cuda import doctor
from llama3.resources import resource
from tests.quantised_files import BY_NAME
from tests.quantised_files import write as write_quantised

NAMES = ["shape", "CuPy", "compiler", "cuBLAS", "driver", "GPU", "memory"]


@pytest.fixture
def demo():
    return load_folder(resource("weights", "demo"))


def by_name(checks):
    assert [check.name for check in checks] == NAMES
    return {check.name: check for check in checks}


def test_without_cupy_every_check_is_made_and_says_what_to_install(demo, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cupy")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cupy", "cupyx", "cupy_backends", "cupy_backends.cuda.libs", "cuda.pathfinder"):
        monkeypatch.setitem(sys.modules, name, None)
    checks = by_name(doctor.examine(demo))
    assert checks["shape"].ok and not any(checks[name].ok for name in NAMES[1:])
    assert "pip install 'llama3[cuda13-ctk]'" in checks["CuPy"].fix
    assert "GB needed" in checks["memory"].found


def test_two_cupys_in_one_environment(demo, monkeypatch):
    class Wheel:
        def __init__(self, name):
            self.metadata = {"Name": name}

    monkeypatch.setattr(doctor, "distributions", lambda: [Wheel("cupy-cuda12x"), Wheel("numpy"), Wheel("cupy-cuda13x")])
    check = by_name(doctor.examine(demo))["CuPy"]
    assert not check.ok and check.fix.startswith("pip uninstall cupy-cuda12x cupy-cuda13x")


@pytest.mark.parametrize(
    ("scheme", "device", "found"),
    [
        ("float8 by row", "cuda", "quantised matrices that stay codes: 14 in fp8"),
        ("float8 by row", "cuda:0-1", "quantised matrices that stay codes: 14 in fp8"),
        ("int4 with zeros", "cuda", "quantised matrices that become bfloat16: 14"),  # groups of 64
    ],
)
def test_what_becomes_of_quantised_matrices_is_said(scheme, device, found, tmp_path):
    folder, _ = write_quantised(tmp_path / "q", BY_NAME[scheme], hidden_dim=256)
    checks = {check.name: check for check in doctor.examine(load_folder(folder), device)}
    assert checks["weights"].ok and checks["weights"].found == found


@pytest.mark.parametrize("error", [OSError("libcuda.so.1: bad ELF"), AttributeError("x"), RuntimeError("a\nb")])
def test_whatever_a_broken_library_raises_is_one_line(error):
    def broken():
        raise error

    check = doctor.run_check("CuPy", broken)
    assert not check.ok and "\n" not in check.found and type(error).__name__ in check.found


def test_the_command_names_every_check_and_fails_where_one_does(capsys, monkeypatch):
    checks = [doctor.Check(name, True, "here") for name in NAMES]
    monkeypatch.setattr(doctor, "examine", lambda checkpoint, device, slots: checks)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES) and out.endswith("The model runs on cuda.\n")
    checks[1] = doctor.Check("CuPy", False, "not importable", "pip install it")
    assert main(["doctor", "--device", "cuda:1"]) == 1
    out = capsys.readouterr().out
    assert "MISSING: not importable" in out and "-> pip install it" in out and "does not run on cuda:1" in out
    assert main(["doctor", "a", "b"]) == 2
