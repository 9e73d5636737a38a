"""Every barrier of a kernel is needed, and its loss would be noticed: without it, the results change with the order of
the threads, or the emulation stops the kernel.
"""

import copy
import functools
import re
from unittest import mock

import numpy as np
import pytest

from llama3.cuda import attention as cuda_attention
from llama3.cuda import linear as cuda_linear
from llama3.cuda.qkv import norm_qkv_rope
from llama3.resources import resource
from tests.cuda import (
    test_attention,
    test_attention_prompt,
    test_kernel_ladder,
    test_linear,
    test_linear_quantised,
    test_qkv,
    test_rms_norm,
    test_sampler,
)
from tests.cuda.emulator.device import ORDERS, EmulatedDevice, EmulationError
from tests.cuda.kernel_checks import random
from tests.cuda.quantised_matrices import quantised

BARRIER = "__syncthreads();"
# A shared array in the body of a template, which ends with a brace of its own line
IN_A_TEMPLATE = re.compile(r"^template <.*>\n[^{};]*\{\n(?:(?!\};?$).*\n)*?.*__shared__", re.MULTILINE)


def rms_norm(device):
    return test_rms_norm.normed(device, *test_rms_norm.inputs(2, 2112))


def attention(device):
    """A row of two splits: with a block for each, and with one block for both."""
    arguments, out = test_attention.inputs([65, 300], 4, 1, 128, 320), []
    for blocks in (cuda_attention.BLOCKS, 1):
        with mock.patch.object(cuda_attention, "BLOCKS", blocks):
            out.append(test_attention.attention(device, *arguments))
    return np.stack(out)


def attention_prompt(device):
    return test_attention_prompt.attention(device, *test_attention_prompt.inputs(((70, 130),), 1, 1, 64, 200))


def attention_wgmma(device):
    hopper = copy.copy(device)
    hopper.capability = 90
    return test_attention_prompt.attention(hopper, *test_attention_prompt.inputs(((20, 300),), 1, 1, 128, 320))


def linear(device):
    x, norm, w = random(1, 1, 2112, dtype=np.float32), random(2, 2112), random(3, 9, 2112)
    return test_linear.launched(device, test_linear.norm_linear, [x, norm, w], test_linear.poison(1, 9, np.float32))


def linear_codes(device):
    """With the norm in front, and with a row that is given."""
    x, norm, w = random(1, 1, 2176, dtype=np.float32), random(2, 2176), quantised("Int4", 3, 9, 2176)
    run, out = test_linear_quantised.run, test_linear.poison(1, 9, np.float32)
    return np.stack(
        [
            run(device, test_linear.norm_linear, [x, norm], "Int4", w, out),
            run(device, cuda_linear.linear, [x.astype(norm.dtype)], "Int4", w, out),
        ]
    )


def qkv(device):
    arguments = test_qkv.inputs(2, 1, 64, 2112)
    return np.concatenate([array.ravel() for array in test_qkv.launched(device, norm_qkv_rope, arguments, 1, 64, 5)])


def linear_few(device):
    """Both uses of the block's two tiles: two tiles of one matrix, and a tile of each of two matrices."""
    x, w, w13 = random(1, 9, 512), random(2, 35, 512), random(3, 70, 512)
    plain = test_linear.launched(device, cuda_linear.linear, [x, w], test_linear.poison(9, 35, np.float32))
    norm = np.ones(512, x.dtype)
    rows = x.astype(np.float32)
    opened = test_linear.launched(
        device, test_linear.norm_swiglu, [rows, norm, w13], test_linear.poison(9, 35, x.dtype)
    )
    return np.stack([plain, opened.astype(np.float32)])


def linear_steps(device):
    x, w = test_linear.inputs(5, 70, 96)
    out = test_linear.poison(5, 70, x.dtype)
    steps = [test_kernel_ladder.linear_step(name) for name in test_kernel_ladder.LINEAR]
    return np.stack([test_linear.launched(device, step, [x, w], out) for step in steps])


def attention_steps(device):
    q, k, v, _ = test_attention_prompt.inputs(((20, 50),), 1, 1, 64, 80)
    names = test_kernel_ladder.ATTENTION
    return np.stack([test_kernel_ladder.attention_step(device, name, q, k, v, ((20, 50),)) for name in names])


def attention_splits(device):
    return test_kernel_ladder.attention_splits(device, *test_attention.inputs([65, 300], 4, 1, 128, 320))


def sampler(device):
    """Rows with every filter, and one row in which a logit is NaN."""
    logits = test_sampler.logits_of(9, 9000, 1)
    logits[:, 8995] = logits.max(axis=1)  # one of the most likely tokens, and the last to be found
    logits[8, 8500] = np.nan
    kinds = [kind for kind in test_sampler.combinations() if kind[0]["temperature"] == 1.7][::4]
    kinds[0] = {"temperature": 0}, False
    samplers = [test_sampler.sampler_of({**kinds[i % 8][0], "logprobs": 5}, kinds[i % 8][1], 9000, i) for i in range(9)]
    return np.frombuffer(repr(test_sampler.draw(device, logits, samplers)).encode(), np.uint8)


# For each file with barriers, the function that runs its kernels.
RUNS = {
    "common.cuh": attention,
    "rms_norm.cuh": rms_norm,
    "attention.cu": attention,
    "attention_prompt.cu": attention_prompt,
    "attention_wgmma.cu": attention_wgmma,
    "linear.cuh": linear,
    "linear_codes.cuh": linear_codes,
    "qkv.cu": qkv,
    "linear_few.cu": linear_few,
    "linear_steps.cu": linear_steps,
    "attention_steps.cu": attention_steps,
    "attention_split_steps.cu": attention_splits,
    "sampler.cuh": sampler,
    "sampler.cu": sampler,
    "sampler_select.cu": sampler,
    "sampler_top.cu": sampler,
}
# (file, number of the barrier). This barrier stands before a block is counted as one that has ended. Its loss cannot be
# noticed: the emulation runs one block after another, so no block sees unfinished writes of another one.
BETWEEN_BLOCKS = {("common.cuh", 0)}
KERNELS = resource("kernels")


def lines_of(file):
    """The lines with a barrier, counted from 1."""
    return [line for line, text in enumerate((KERNELS / file).read_text().splitlines(), 1) if BARRIER in text]


BARRIERS = [
    pytest.param(file, line, id=f"{file}-{i}")
    for file in RUNS
    for i, line in enumerate(lines_of(file))
    if (file, i) not in BETWEEN_BLOCKS
]


def result(device, function):
    """If the emulation stopped the kernel, its error is the result."""
    try:
        return function(device).tobytes()
    except EmulationError as error:
        return str(error)


@functools.cache
def right_result(function):
    right = function(EmulatedDevice())
    assert np.isfinite(right.astype(np.float32)).all()
    return right.tobytes()


def test_no_file_with_a_barrier_is_left_out():
    """Except for the benchmark's barrier of all blocks, because the emulation runs one block at a time."""
    assert {path.name for path in KERNELS.iterdir() if BARRIER in path.read_text()} == {*RUNS, "probes.cu"}


def test_no_shared_array_is_in_a_template():
    """g++ puts such an array where the emulation does not fill it with NaN: what is read too early may look right."""
    assert [path.name for path in KERNELS.iterdir() if IN_A_TEMPLATE.search(path.read_text())] == []


@pytest.mark.parametrize(("file", "line"), BARRIERS)
def test_a_removed_barrier_is_noticed(emulated, file, line):
    assert (KERNELS / file).read_text().splitlines()[line - 1].count("__syncthreads") == 1
    right = right_result(RUNS[file])
    for order in ORDERS:
        with emulated.in_order(order), emulated.without_barrier(file, line):
            if result(emulated, RUNS[file]) != right:
                return
    pytest.fail("without this barrier, the results are right in every order")
