"""The machine code of every kernel asks for weights before it waits, reads nothing too early, and spills nothing.

Each rule is shown to catch its fault: in the text of a kernel as it once was, or with one thing changed.
"""

import pytest

from llama3.cuda.source import kernel_source
from tests.cuda.compile_gates import VARIANTS
from tests.cuda.machine_gates import ARCHITECTURES, EARLY_LOADS, EARLY_PREFETCHES, UNDER_WAY, faults, machine_code
from tests.cuda.test_compile_gates import variants

WAIT = "    wait_for_predecessor();\n"
LOAD = "load_once(reinterpret_cast<const uint4*>(rows.of[i] + elements(channel)"
PREFETCH = "    prefetch_split(keys + at, values + at, min(n - split * SPLIT, SPLIT));\n"
VALUES = "    load_values(value, values, first, n);\n"
WEIGHTS = "    float sum = compute_weights(scores, largest);\n"
# For each rule: a kernel file, a text in it, what replaces the text, and the fault that the rule must then find.
BROKEN = [
    # Read-only loads of weights, as they once were
    ("linear_few.cu", "ld.global.L1::no_allocate", "ld.global.nc.L1::no_allocate", "loads of weights before the wait"),
    ("linear_few.cu", LOAD, LOAD + " + (i ? w.of[i - 1].x >> 31 : 0)", "it waits for one of them"),
    ("linear_few.cu", "constexpr int AHEAD = 2;", "constexpr int AHEAD = 1;", "in the loop, 0 loads"),
    ("embedding.cu", "bf16* table, float* x", "bf16* __restrict__ table, float* __restrict__ x", "a read-only load"),
    ("feed_forward.cu", WAIT, "    out[threadIdx.x] = gate_up[0];\n" + WAIT, "it writes before the wait"),
    ("feed_forward.cu", WAIT, "    if (__bfloat162float(gate_up[0]) > 0) return;\n" + WAIT, "it reads before the wait"),
    ("feed_forward.cu", WAIT, "", "it does not wait"),
    ("linear.cu", "__launch_bounds__(THREADS)", "__launch_bounds__(THREADS, 6)", "a spill"),
    ("linear.cu", "if (lane == 0 && r.n_pieces > STEP)", "if (false)", "0 prefetches before the wait"),
    ("attention.cu", PREFETCH + WAIT, WAIT + PREFETCH, "0 prefetches before the wait"),
    ("attention.cu", VALUES + WEIGHTS, WEIGHTS + VALUES, "it asks for values after the softmax"),
]  # fmt: skip


def found(file, defines, source, architecture):
    code = machine_code(source, file, defines, architecture)
    return [f"{kernel}: {fault}" for kernel in code for fault in faults(file, kernel, code[kernel], defines)]


@pytest.mark.parametrize(("file", "defines", "architecture"), variants(ARCHITECTURES))
def test_every_kernel_keeps_every_rule(file, defines, architecture):
    assert found(file, defines, kernel_source(file), architecture) == []


@pytest.mark.parametrize(("file", "text", "instead", "fault"), BROKEN)
def test_a_rule_finds_its_fault(file, text, instead, fault):
    source = kernel_source(file)
    assert text in source
    assert any(fault in line for line in found(file, (), source.replace(text, instead), 90))


def test_the_tables_name_kernels_that_exist():
    assert EARLY_LOADS.keys() >= UNDER_WAY.keys()
    sources = "".join(kernel_source(file) for file, _ in VARIANTS)
    assert [kernel for kernel in EARLY_LOADS | EARLY_PREFETCHES if f" {kernel}(" not in sources] == []
