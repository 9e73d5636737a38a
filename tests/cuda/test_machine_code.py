"""The reader of machine code, and the rules for it, on short texts. test_machine_gates.py applies them to kernels."""

import pytest

from tests.cuda.machine_code import Instruction, parse
from tests.cuda.machine_code_texts import HEADER, code_of, text_of
from tests.cuda.machine_gates import faults, interruptions, under_way_while_waiting

TWO_LOADS = ["LDG.E.NA.LTC128B.128 R4, desc[UR8][R2.64]", "LDG.E.NA.LTC128B.128 R8, desc[UR8][R2.64+0x200]"]
STORE = "STG.E desc[UR8][R20.64], R24"


def opcodes(instructions):
    return [instruction.opcode for instruction in instructions]


def test_a_line_becomes_an_instruction():
    text = "        /*0570*/              @!P0 LDG.E.NA.LTC128B.128 R12, desc[UR8][R2.64+0x10] ;"
    (load,) = parse(HEADER.format(name="kernel") + text)["kernel"].instructions
    assert load == Instruction(0x570, "!P0", "LDG.E.NA.LTC128B.128", "R12, desc[UR8][R2.64+0x10]")
    assert load.loads_weights and load.loaded_quad == 3 and load.quads == {0, 3}
    assert str(load) == "0570 @!P0 LDG.E.NA.LTC128B.128 R12, desc[UR8][R2.64+0x10]"


@pytest.mark.parametrize(
    ("line", "quads"),
    [
        ("HMMA.16816.F32.BF16 R16, R4, R28, R16", {1, 4, 7}),
        ("IADD3 R3, P0, R14.reuse, UR12, RZ", {0, 3}),  # UR12 is another kind of register, RZ is none
        ("MOV R8, c[0x0][0x210]", {2}),
        ("EXIT", set()),
    ],
)
def test_only_vector_registers_are_counted(line, quads):
    assert code_of(line).instructions[0].quads == quads


def test_each_kernel_of_a_file_has_its_own_instructions():
    code = parse(text_of("first", "ACQBULK", "EXIT") + "\n" + text_of("second", "EXIT"))
    assert {name: opcodes(kernel.instructions) for name, kernel in code.items()} == {
        "first": ["ACQBULK", "EXIT"],
        "second": ["EXIT"],
    }
    assert code["first"].waits and not code["second"].waits


def test_before_the_wait_is_what_some_path_reaches_without_it():
    """Code for a rare case often stands at the end, and jumps back."""
    code = code_of("MOV R1, R2", "@P0 BRA `(.L_x_1)", ".L_x_0:", "ACQBULK", STORE, "EXIT",
                   ".L_x_1:", "LDG.E R4, desc[UR8][R2.64]", "BRA `(.L_x_0)", ".L_x_2:", "BRA `(.L_x_2)")  # fmt: skip
    assert opcodes(code.before_the_wait()) == ["MOV", "BRA", "LDG.E", "BRA"]


def test_a_branch_on_an_operand_also_goes_on():
    code = code_of("BRA.DIV UR4, `(.L_x_1)", "MOV R1, R2", "ACQBULK", ".L_x_1:", "EXIT")
    assert opcodes(code.before_the_wait()) == ["BRA.DIV", "MOV", "EXIT"]


def test_a_loop_ends_with_a_branch_back():
    code = code_of("MOV R1, R2", ".L_x_0:", "FADD R1, R1, R1", "@P0 BRA `(.L_x_0)", "EXIT", ".L_x_1:", "BRA `(.L_x_1)")
    assert [opcodes(loop) for loop in code.loops()] == [["FADD", "BRA"]]


@pytest.mark.parametrize(
    ("between", "interrupts"),
    [
        ("IADD3 R2, R2, 0x1, RZ", False),
        ("MOV R16, R5", True),  # uses the second word of the first load
        ("LDG.E.NA.LTC128B.128 R4, desc[UR8][R2.64+0x100]", True),  # into the same registers
    ],
)
def test_what_touches_a_load_interrupts_the_loads_after_it(between, interrupts):
    found = interruptions(code_of(TWO_LOADS[0], between, TWO_LOADS[1], "MOV R17, R4").instructions)
    assert [str(instruction)[5:] for instruction in found] == ([between] if interrupts else [])


def loop_of(*lines):
    return code_of(*lines).instructions


def test_loads_under_way_are_those_that_started_after_the_one_that_is_used():
    first, second = TWO_LOADS
    use_first, use_second = "HMMA.16816.F32.BF16 R16, R4, R28, R16", "HMMA.16816.F32.BF16 R16, R8, R28, R16"
    assert under_way_while_waiting(loop_of(use_first, first, use_second, second)) == 1
    assert under_way_while_waiting(loop_of(first, second, use_first, use_second)) == 0


@pytest.mark.parametrize(
    ("kernel", "lines", "expected"),
    [
        ("swiglu", ["ACQBULK", STORE], []),
        ("swiglu", [STORE, "ACQBULK"], ["it writes before the wait"]),
        ("swiglu", ["REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR8][R2.64], R4", "ACQBULK"], ["it writes before the wait"]),
        ("swiglu", ["LDG.E R4, desc[UR8][R2.64]", "ACQBULK"], ["it reads before the wait"]),
        ("swiglu", [TWO_LOADS[0], "ACQBULK"], ["1 loads of weights before the wait; expected 0"]),
        ("swiglu", ["EXIT"], ["it does not wait"]),
        ("swiglu_naive", ["EXIT"], []),
        ("swiglu_naive", ["ACQBULK"], ["it waits for its predecessor"]),
        ("rms_norm", [*TWO_LOADS, "ACQBULK"], []),
        ("rms_norm", [TWO_LOADS[0], "ACQBULK", TWO_LOADS[1]], ["1 loads of weights before the wait; expected 2"]),
        ("rms_norm", [TWO_LOADS[0], "MOV R9, R4", TWO_LOADS[1], "ACQBULK"], ["between the first loads"]),
        ("swiglu", ["ACQBULK", "LDG.E.CONSTANT R4, desc[UR8][R2.64]"], ["a read-only load"]),
        ("swiglu", ["ACQBULK", "STL [R1], R4"], ["a spill"]),
    ],
)
def test_each_rule_on_the_shortest_code_that_breaks_it(kernel, lines, expected):
    found = faults("feed_forward.cu", kernel, code_of(*lines, "EXIT"))
    assert len(found) == len(expected)
    assert [fault for fault, start in zip(found, expected) if not fault.startswith(start)] == []
