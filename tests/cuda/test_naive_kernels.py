"""Every operation has a naive kernel, which is short, and a test runs it."""

import re
from pathlib import Path

import pytest

from llama3.resources import resource
from tests.cuda.test_compile_gates import DEFINITION

KERNELS = sorted(resource("kernels").glob("*.cu"))
NAIVE = {path.name: [name for name in DEFINITION.findall(path.read_text()) if "naive" in name] for path in KERNELS}


@pytest.mark.parametrize("file", NAIVE)
def test_every_file_has_one_or_names_the_file_that_has(file):
    if not NAIVE[file]:
        named = re.findall(r"\w+\.cu\b", (resource("kernels") / file).read_text())
        assert any(NAIVE[other] for other in named if other != file), f"{file} names no file with a naive kernel"


def test_every_one_is_run_by_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for names in NAIVE.values() for name in names if f'"{name}"' not in tests] == []


@pytest.mark.parametrize("file", NAIVE)
def test_one_is_short(file):
    """Short enough to be understood at a glance."""
    text = (resource("kernels") / file).read_text()
    for name in NAIVE[file]:
        body = text[text.index(f" {name}(") :]
        lines = body[: body.index("\n}\n")].count("\n")
        assert lines <= 33, (name, lines)
