"""No barrier of a kernel is there for nothing, and none could go missing unnoticed: without it, a test fails."""

import numpy as np
import pytest

from llama3.cuda.source import kernel_source
from llama3.resources import resource
from tests.cuda import test_attention, test_attention_prompt, test_rms_norm
from tests.cuda.emulator import build
from tests.cuda.emulator.device import ORDERS, EmulationError

BARRIER = "__syncthreads();"


def rms_norm(device):
    return test_rms_norm.normed(device, *test_rms_norm.inputs(2, 2112))


def attention(device):
    return test_attention.attention(device, *test_attention.inputs([65, 300], 4, 1, 128, 320))


def attention_prompt(device):
    return test_attention_prompt.attention(device, *test_attention_prompt.inputs(((70, 130),), 1, 1, 64, 200))


BARRIERS = [
    (function, i)
    for function in (rms_norm, attention, attention_prompt)
    for i in range(kernel_source(f"{function.__name__}.cu").count(BARRIER))
]


def results(device, function):
    """In each order; what stopped the kernel is a result too."""
    for order in ORDERS:
        with device.in_order(order):
            try:
                yield function(device).tobytes()
            except EmulationError as error:
                yield str(error)


def test_no_kernel_with_a_barrier_is_left_out():
    files = {path.stem for path in resource("kernels").glob("*.cu") if BARRIER in path.read_text()}
    assert files == {function.__name__ for function, _ in BARRIERS}


@pytest.mark.parametrize(("function", "removed"), BARRIERS)
def test_a_removed_barrier_is_noticed(emulated, monkeypatch, function, removed):
    right = function(emulated)
    assert np.isfinite(right.astype(np.float32)).all()

    def without(file):
        pieces = kernel_source(file).split(BARRIER)
        return BARRIER.join(pieces[: removed + 1]) + ";" + BARRIER.join(pieces[removed + 1 :])

    monkeypatch.setattr(build, "kernel_source", without)
    build.load.cache_clear()
    build._library.cache_clear()
    try:
        assert set(results(emulated, function)) != {right.tobytes()}
    finally:
        build.load.cache_clear()
        build._library.cache_clear()
