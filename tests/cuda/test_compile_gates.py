"""Every kernel compiles for every architecture, with the registers and the shared memory that resources.txt lists."""

import re

import pytest

from llama3.cuda.source import kernel_source
from llama3.resources import resource
from tests.cuda.compile_gates import (
    ARCHITECTURES,
    TABLE,
    VARIANTS,
    architectures_of,
    compile_kernels,
    compiled,
    read_table,
)

DEFINITION = re.compile(r'^extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(', re.MULTILINE)


def variants(architectures):
    """(file, defines, architecture) of all that are compiled. Kernels for codes are half of it and take two minutes, so
    that only those for Hopper are not slow tests.
    """
    return [
        pytest.param(file, defines, sm, marks=[pytest.mark.slow] if "WEIGHT=" in str(defines) and sm != 90 else [])
        for file, defines in VARIANTS
        for sm in architectures_of(file)
        if sm in architectures
    ]


def test_the_table_holds_every_kernel_for_every_architecture():
    expected = {
        (file, defines, name, sm)
        for file, defines in VARIANTS
        for name in DEFINITION.findall(kernel_source(file))
        for sm in architectures_of(file)
    }
    assert {(row.file, row.defines, row.name, row.architecture) for row in read_table()} == expected
    assert {file for file, _ in VARIANTS} == {path.name for path in resource("kernels").glob("*.cu")}


def test_no_kernel_spills_or_has_a_stack():
    assert [row.line() for row in read_table() if row.stack or row.spilled] == []


@pytest.mark.parametrize(("file", "defines", "architecture"), variants((*ARCHITECTURES, "90a")))
def test_compiles_to_what_the_table_says(file, defines, architecture):
    """Another version of NVRTC may allocate differently: then only a spill or a stack is an error."""
    from cupy_backends.cuda.libs import nvrtc

    found = compile_kernels(file, defines, architecture)
    assert found and not any(row.stack or row.spilled for row in found)
    if TABLE.read_text().startswith("# NVRTC {}.{}.".format(*nvrtc.getVersion())):
        table = [
            row for row in read_table() if (row.file, row.defines, row.architecture) == (file, defines, architecture)
        ]
        assert sorted(found) == table


def test_products_by_wgmma_run_while_their_threads_go_on():
    """The assembler says so if it must wait after each product instead, because of how the source uses registers."""
    _, log = compiled(kernel_source("attention_wgmma.cu"), "attention_wgmma.cu", (), "90a")
    assert "entry function 'attention_wgmma'" in log and "serialized" not in log
