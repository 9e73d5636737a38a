"""The steps between naive and fast kernels are short and agree with float64; no line or function is too long."""

import numpy as np
import pytest

from llama3.cuda.attention import SPLIT
from llama3.cuda.device import Kernel, bfloat16
from llama3.resources import resource
from tests.cuda import test_attention, test_attention_prompt, test_linear
from tests.cuda.kernel_checks import assert_close
from tests.cuda.test_compile_gates import DEFINITION

LINEAR = {"linear_tile": (32, 1024), "linear_registers": (64, 256)}  # outputs and tokens of a block; threads of a block
ATTENTION = ("attention_scores", "attention_online")
SPLITS = ("attention_split", "attention_combine")
ROWS, KEYS = 16, 32  # of a block of attention_steps.cu: query rows, and keys in shared memory at a time
KERNELS = resource("kernels")
STEP_FILES = ("linear_steps.cu", "attention_steps.cu", "attention_split_steps.cu")
FILES = sorted(path.name for path in KERNELS.glob("*.cu*"))
STEPS = {file: DEFINITION.findall((KERNELS / file).read_text()) for file in STEP_FILES}


def linear_step(name):
    def launch(device, x, w, out):
        (rows, width), n_out = x.shape, len(w)
        tile, threads = LINEAR[name]
        args = [w, x, out, *(np.int32(n) for n in (n_out, width, rows))]
        device.launch(Kernel("linear_steps.cu", name), (-(-n_out // tile), -(-rows // tile)), (threads,), args)

    return launch


def attention_step(device, name, q, k, v, sequences):
    """q (T, n_heads, head_dim): the rows of every sequence; sequences: number of rows and first position of each."""
    _, n_heads, head_dim = q.shape
    tiles, row = [], 0
    for slot, (count, start) in enumerate(sequences):
        tiles += [(row + i, min(ROWS, count - i), start + i, slot) for i in range(0, count, ROWS)]
        row += count
    longest = max(count + start for count, start in sequences)
    shared = 4 * ROWS * -(-longest // KEYS) * KEYS if name == "attention_scores" else 0
    out = device.alloc(q.shape, bfloat16)
    there = [device.upload(array) for array in (q, k, v, np.array(tiles, np.int32))]
    args = [*there, out, *(np.int32(n) for n in (n_heads, k.shape[1], k.shape[2]))]
    kernel = Kernel("attention_steps.cu", name, (f"HEAD_DIM={head_dim}",))
    device.launch(kernel, (len(tiles), n_heads), (head_dim,), args, shared=shared)
    return device.download(out)


def attention_splits(device, q, k, v, positions, slots):
    """The arguments of `test_attention.attention`."""
    (rows, n_heads, head_dim), n_splits = q.shape, -(-k.shape[2] // SPLIT)
    partial_out = device.alloc((rows, n_heads, n_splits, head_dim), np.float32)
    stats, out = device.alloc((rows, n_heads, n_splits, 2), np.float32), device.alloc(q.shape, bfloat16)
    q, k, v, positions, slots = (device.upload(array) for array in (q, k, v, positions, slots))
    split, combine = (Kernel("attention_split_steps.cu", name, (f"HEAD_DIM={head_dim}",)) for name in SPLITS)
    sizes = [np.int32(n) for n in (n_heads, k.shape[1], k.shape[2])]
    args = [q, k, v, positions, slots, partial_out, stats, *sizes]
    device.launch(split, (n_heads, n_splits, rows), (head_dim,), args)
    device.launch(combine, (n_heads, rows), (head_dim,), [partial_out, stats, positions, out, np.int32(n_splits)])
    return device.download(out)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(("rows", "n_out", "width"), [(1, 70, 64), (33, 64, 96), (67, 130, 64)])
def test_a_linear_step_agrees_with_float64(device, in_every_order, name, rows, n_out, width):
    x, w = test_linear.inputs(rows, n_out, width)
    out = test_linear.poison(rows, n_out, bfloat16)
    found = in_every_order(lambda: test_linear.launched(device, linear_step(name), [x, w], out))
    assert_close(found, test_linear.product(x, w))


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 1, 128), (2, 2, 64)])
def test_an_attention_step_agrees_with_float64(device, in_every_order, name, n_heads, n_kv_heads, head_dim):
    """Ragged prompts; all keys and values after a prompt's end are infinite."""
    sequences = test_attention_prompt.RAGGED
    q, k, v, _ = test_attention_prompt.inputs(sequences, n_heads, n_kv_heads, head_dim, 140)
    found = in_every_order(lambda: attention_step(device, name, q, k, v, sequences))
    assert_close(found, test_attention_prompt.expected(q, k, v, sequences))


@pytest.mark.parametrize("name", ATTENTION)
def test_an_attention_step_takes_sharp_scores(device, name):
    """One key outweighs all others by exp(100) and more, and it is not among the first: no overflow."""
    sequences = ((40, 30),)
    q, k, v, _ = test_attention_prompt.inputs(sequences, 1, 1, 64, 70)
    k[0, 0, 45] = (q[20, 0].astype(np.float32) * 20).astype(bfloat16)
    assert_close(attention_step(device, name, q, k, v, sequences), test_attention_prompt.expected(q, k, v, sequences))


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 1, 128), (2, 2, 64)])
def test_attention_by_splits_agrees_with_float64(device, in_every_order, n_heads, n_kv_heads, head_dim):
    arguments = test_attention.inputs([0, 255, 256, 600], n_heads, n_kv_heads, head_dim, 700)
    found = in_every_order(lambda: attention_splits(device, *arguments))
    assert_close(found, test_attention.expected(*arguments))


def test_every_step_is_run_by_a_test():
    assert dict(zip(STEP_FILES, map(list, (LINEAR, ATTENTION, SPLITS)))) == STEPS


@pytest.mark.parametrize("file", STEPS)
def test_a_step_is_short(file):
    """So that a reader sees the one idea it adds."""
    text = (KERNELS / file).read_text()
    for name in STEPS[file]:
        body = text[text.index(f" {name}(") :]
        lines = body[: body.index("\n}\n")].count("\n")
        assert lines <= 40, (name, lines)


# ---- all files of kernels/ ----


def functions(text):
    """The lines of each top-level function, from the first line of its signature to its closing brace."""
    lines, depth = [], 0
    for line in text.splitlines():
        code = line.split("//")[0].rstrip()
        if not lines and (not code or code.startswith("#")):
            continue
        lines.append(line)
        depth += code.count("{") - code.count("}")
        if depth == 0 and code.endswith((";", "}")):
            if code.endswith("}"):
                yield lines
            lines = []


@pytest.mark.parametrize("file", FILES)
def test_no_line_is_longer_than_120_characters(file):
    lines = (KERNELS / file).read_text().splitlines()
    assert [(number, len(line)) for number, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("file", FILES)
def test_no_function_is_longer_than_60_lines(file):
    text = (KERNELS / file).read_text()
    found = list(functions(text))
    kernels = [name for lines in found for name in DEFINITION.findall("\n".join(lines))]
    assert kernels == DEFINITION.findall(text)  # otherwise the braces were counted wrongly
    assert [(lines[:2], len(lines)) for lines in found if len(lines) > 60] == []
