"""The machine code of the prompt kernels: what a step costs, as their files say, and when wgmma has its registers."""

import re
from collections import Counter

import pytest
from gpu_attention_counts import KERNELS, WGMMA, cost, counts, machine_code, predicted_tflops, step, useful_share

from llama3.resources import resource
from tests.cuda.compile_gates import TABLE
from tests.cuda.machine_code_texts import code_of


def test_a_step_has_the_copies_and_not_the_mask():
    code = code_of(
        "MOV R1, R2", ".L_x_0:", "@P0 BRA `(.L_x_1)", "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", ".L_x_1:",
        "HMMA.16816.F32.BF16 R16, R4, R28, R16", "@P1 BRA `(.L_x_2)", "FSEL R16, R16, -1e30, P2", ".L_x_2:",
        "MUFU.EX2 R16, R16", "@P3 BRA `(.L_x_0)", "EXIT",
    )  # fmt: skip
    assert [i.name for i in step(code)] == ["BRA", "LDGSTS", "HMMA", "BRA", "MUFU", "BRA"]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.file)
def test_less_than_3_percent_of_a_long_prompts_scores_are_masked(kernel):
    assert useful_share(kernel, kernel.keys) < 0.6 and 0.97 < useful_share(kernel, 8192) < 1


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.file)
def test_the_machine_code_has_the_products_loads_and_copies_of_the_source(kernel):
    found = counts(kernel)
    rows = kernel.rows / kernel.warps
    products = kernel.flops / kernel.warps / (4096 if found["HMMA"] else 64 * 128 * 16 * 2 / 4)
    copies = 2 * kernel.keys * kernel.head_dim / 8 / 32 / kernel.warps
    exponentials = rows * kernel.keys / 32 + rows / 8  # a lane has the maximum of a row for every four lanes
    assert found["HMMA"] + found["HGMMA"] == products
    assert found["LDGSTS"] == copies and found["MUFU"] == exponentials
    # Queries, keys and values, 512 bytes a load. wgmma reads shared memory itself.
    loads = (rows + 2 * kernel.keys) * kernel.head_dim * 2 / 512
    assert found["LDSM"] == (loads if found["HMMA"] else 0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.file)
def test_a_kernels_file_states_its_counts(kernel):
    from cupy_backends.cuda.libs import nvrtc

    if not TABLE.read_text().startswith("# NVRTC {}.{}.".format(*nvrtc.getVersion())):
        return  # another version of NVRTC may need a few instructions more or less
    text, found = (resource("kernels") / kernel.file).read_text(), counts(kernel)
    c, products = cost(kernel, found), found["HMMA"] + found["HGMMA"]
    assert f"{products} " in text and f"{found.total() - products} other instructions" in text
    tflops = predicted_tflops(kernel, found, 8192, sms=132, ghz=1.755)
    assert f"{tflops:.0f} TFLOP/s" in text and f"{c.shared:,.0f} cycles" in text and f"{c.tensor:,.0f} cycles" in text


def registers(operand, n):
    """R24 and the n - 1 after it; none for RZ or a descriptor."""
    match = re.fullmatch(r"R(\d+)(\.reuse)?", operand)
    return set(range(int(match[1]), int(match[1]) + n)) if match else set()


def touched_too_early(instructions):
    """What uses accumulators of an HGMMA, or overwrites its operand A, before a wait for it."""
    groups, found = [[set(), set()]], []  # of products under way: accumulators, and registers of A
    for instruction in instructions:
        operands = instruction.operands.split(", ")
        if instruction.name == "HGMMA":
            groups[-1][0] |= registers(operands[0], 64)
            groups[-1][1] |= registers(operands[1], 4)
            if operands[-1] == "gsb0":  # wgmma.commit_group
                groups.append([set(), set()])
        elif instruction.opcode == "WARPGROUP.DEPBAR.LE":
            left = int(operands[1], 16)
            groups = groups[len(groups) - 1 - left :]
        else:
            used = {int(number) for number in re.findall(r"(?<![\w.])R(\d+)", instruction.operands)}
            if any(used & accumulators or registers(operands[0], 1) & a for accumulators, a in groups):
                found.append(str(instruction))
    return found


def test_the_machine_code_leaves_registers_alone_until_their_product_has_ended():
    assert touched_too_early(step(machine_code(WGMMA)) * 2) == []
    product, wait = "HGMMA.64x128x16.F32.BF16 R24, R152, gdesc[UR20].tnspB, R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    uses, writes_a, reads_a = "FMUL R5, R6, R87", "F2FP.BF16.F32.PACK_AB R155, R5, R6", "MOV R5, R155"
    for line, bad in ((uses, True), (writes_a, True), (reads_a, False), ("FMUL R5, R6, R88", False)):
        assert bool(touched_too_early(code_of(product, line, wait).instructions)) is bad
        assert touched_too_early(code_of(product, wait, line).instructions) == []


def test_attention_of_8192_tokens_is_predicted_above_its_bar():
    bars = {"attention_prompt.cu": 300, "attention_wgmma.cu": 430}
    for kernel in KERNELS:
        assert predicted_tflops(kernel, counts(kernel), 8192, sms=132, ghz=1.755) >= bars[kernel.file]


def test_more_instructions_make_a_step_slower():
    few, many = Counter(HMMA=256, LDSM=80, FADD=500), Counter(HMMA=256, LDSM=80, FADD=1500)
    assert cost(KERNELS[0], few).together < cost(KERNELS[0], many).together
