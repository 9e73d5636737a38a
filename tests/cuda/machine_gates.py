"""What the machine code of each kernel must show where a kernel starts before its predecessor has ended (sm_90 and up).

    python -m tests.cuda.machine_gates linear_few.cu ROWS=8 90      prints the machine code of a file, and what is wrong

The emulation proves in which order the source reads and writes. The compiler may change that order.
"""

import itertools
import sys

from llama3.cuda.source import kernel_source
from tests.cuda.compile_gates import compiled
from tests.cuda.machine_code import LOADS, PREFETCH, STORES, Instruction, MachineCode, disassemble

ARCHITECTURES = (90, "90a", 100, 120)
# Loads of weights that a thread starts before it waits for the predecessor. All other kernels start none.
EARLY_LOADS = {
    **dict.fromkeys(("linear", "linear_float", "linear_add"), 4),
    "norm_linear": 4 + 2,  # two are of the norm's weights
    "norm_swiglu": 8 + 2,
    "norm_qkv_rope": 4 + 2,
    **dict.fromkeys(("rms_norm", "rms_norm_rows"), 2),
    **dict.fromkeys(("linear_few", "linear_few_float", "linear_few_add", "swiglu_few"), 8),
}
# With Int4, also those of the scales of four groups. (The scale of a row has 4 bytes, and is not counted.)
EARLY_SCALES = {
    **dict.fromkeys(("linear", "linear_float", "linear_add", "norm_linear", "norm_qkv_rope"), 1),
    "norm_swiglu": 2,
}
# Ranges that a block prefetches into the L2 cache before it waits: behind the first loads of each row of weights, and
# attention's keys and values. All other kernels prefetch none.
EARLY_PREFETCHES = {
    **dict.fromkeys(("linear", "linear_float", "linear_add", "norm_linear", "norm_qkv_rope"), 1),
    **dict.fromkeys(("norm_swiglu", "attention"), 2),
}
# Other loads before the wait. They are right only for what was written two launches earlier or more: that launch has
# ended, because the predecessor has waited for it. Attention reads the row's slot and position: the last step's.
EARLY_READS = {"attention": 2}
# Loads of weights that are under way while a warp waits for the ones before them, in the loop of a kernel.
UNDER_WAY = dict.fromkeys(("linear_few", "linear_few_float", "linear_few_add", "swiglu_few"), 4)
PROBES = ("read_only", "grid_sync")  # they measure, and run alone


def machine_code(source: str, file: str, defines: tuple[str, ...], architecture: int | str) -> dict[str, MachineCode]:
    """The kernels of a file whose text is `source`, by name."""
    return disassemble(compiled(source, file, defines, architecture)[0])


def must_wait(file: str, kernel: str) -> bool:
    """Naive kernels, and the steps between them and the fast ones, start only after their predecessor's end."""
    return not ("naive" in kernel or file.endswith("_steps.cu") or kernel in PROBES)


def faults(file: str, kernel: str, code: MachineCode, defines: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the machine code of a kernel; empty if nothing is."""
    found = [f"a read-only load, which need not stay on its side of the wait: {i}" for i in code.read_only]
    found += [f"a spill: {i}" for i in code.instructions if i.name in ("LDL", "STL")]
    if code.waits != must_wait(file, kernel):
        found.append("it waits for its predecessor" if code.waits else "it does not wait for its predecessor")
    elif code.waits:
        expected = EARLY_LOADS.get(kernel, 0)
        if "WEIGHT=Int4" in defines:
            expected += EARLY_SCALES.get(kernel, 0)
        found += _before_the_wait(kernel, code.before_the_wait(), expected)
        under_way = min(map(under_way_while_waiting, code.loops()), default=0)
        if under_way < UNDER_WAY.get(kernel, 0):
            found.append(f"in the loop, {under_way} loads of weights are under way while a warp waits for others")
        if kernel == "attention":
            found += [f"it asks for values after the softmax: {i}" for i in loads_after_the_softmax(code)]
    return found


def _before_the_wait(kernel: str, early: list[Instruction], expected: int) -> list[str]:
    found = [f"it writes before the wait: {i}" for i in early if i.name in STORES]
    reads = [i for i in early if i.name in LOADS and not (i.loads_weights or i.loads_a_scale)]
    if len(reads) != EARLY_READS.get(kernel, 0):
        found += [f"it reads before the wait: {i}" for i in reads] or ["it no longer reads before the wait"]
    found += [f"between the first loads, it waits for one of them: {i}" for i in interruptions(early)]
    loads = sum(i.loads_weights for i in early)
    if loads != expected:
        found.append(f"{loads} loads of weights before the wait; expected {expected}")
    prefetches, expected = sum(i.name == PREFETCH for i in early), EARLY_PREFETCHES.get(kernel, 0)
    if prefetches != expected:
        found.append(f"{prefetches} prefetches before the wait; expected {expected}")
    return found


def interruptions(early: list[Instruction]) -> list[Instruction]:
    """What uses the result of a load of weights, or overwrites it, before the last of these loads has started."""
    loads = [at for at, instruction in enumerate(early) if instruction.loads_weights]
    found, loaded = [], set()
    for instruction in early[: loads[-1] + 1] if loads else []:
        if instruction.quads & loaded:
            found.append(instruction)
        if instruction.loads_weights:
            loaded.add(instruction.loaded_quad)
    return found


def under_way_while_waiting(loop: list[Instruction]) -> int:
    """The least number of loads of weights that have started after a load whose result is used."""
    under_way: list[int] = []  # the quads into which they write, in the order in which they started
    least = None
    for instruction in loop * 2:  # what one pass loads, the next one uses
        used = [at for at, quad in enumerate(under_way) if quad in instruction.quads]
        if used:  # loads end in the order in which they start
            under_way = under_way[used[-1] + 1 :]
            least = len(under_way) if least is None else min(least, len(under_way))
        if instruction.loads_weights:
            under_way.append(instruction.loaded_quad)
    return 99 if least is None else least


def loads_after_the_softmax(code: MachineCode) -> list[Instruction]:
    """The loads of attention between its first exponential and the first product with values.

    The first values must be under way by then, so that they arrive while the weights are computed.
    """
    exponentials = (at for at, i in enumerate(code.instructions) if i.name == "MUFU" and "EX2" in i.modifiers)
    softmax = itertools.takewhile(lambda i: i.name != "HMMA", code.instructions[next(exponentials) :])
    return [i for i in softmax if i.name in LOADS]


def main() -> None:
    file, *defines, architecture = sys.argv[1:]
    code = machine_code(kernel_source(file), file, tuple(defines), int(architecture))
    for kernel, its_code in code.items():
        print(f"{kernel}:", *its_code.instructions, sep="\n    ")
    for kernel, its_code in code.items():
        print(f"{kernel}:", *faults(file, kernel, its_code, tuple(defines)), sep="\n    ")


if __name__ == "__main__":
    main()
