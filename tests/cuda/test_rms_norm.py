"""All RMSNorm kernels agree with float64, and a row's bits do not depend on other rows."""

import numpy as np
import pytest

from llama3.cuda.arrays import NormInput
from llama3.cuda.launch import Kernel
from llama3.cuda.rms_norm import rms_norm, rms_norm_rows
from tests.cuda.kernel_checks import assert_close, random

SHAPES = [(1, 64), (3, 64), (2, 192), (5, 2048), (2, 2112), (1, 4096), (300, 64)]
EPS = 1e-5


def inputs(rows, dim):
    return random(rows, rows, dim, dtype=np.float32), random(dim, dim)


def expected(x, weight):
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPS) * weight


def normed(device, x, weight):
    out = device.alloc(x.shape, weight.dtype)
    rms_norm(device, NormInput(device.upload(x), device.upload(weight), EPS), out)
    return device.download(out)


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_agrees_with_float64(device, in_every_order, rows, dim):
    x, weight = inputs(rows, dim)

    assert_close(in_every_order(lambda: normed(device, x, weight)), expected(x, weight))


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_the_naive_kernel_agrees_with_float64(device, in_every_order, rows, dim):
    x, weight = inputs(rows, dim)

    def run():
        out = device.alloc((rows, dim), weight.dtype)
        args = [device.upload(x), device.upload(weight), out, np.int32(rows), np.int32(dim), np.float32(EPS)]
        device.launch(Kernel("rms_norm.cu", "rms_norm_naive"), (-(-rows // 32),), (32,), args)
        return device.download(out)

    assert_close(in_every_order(run), expected(x, weight))


def test_tiny_and_huge_rows(device):
    x, weight = inputs(4, 64)
    x *= np.float32([[1e-8], [1e-3], [1e3], [1e8]])
    assert_close(normed(device, x, weight), expected(x, weight))


def test_a_row_does_not_see_its_neighbours(device):
    x, weight = inputs(5, 192)
    assert np.array_equal(normed(device, x, weight)[2:3], normed(device, x[2:3], weight))


def test_the_norm_of_some_rows_is_the_same_as_in_the_norm_of_all(device, in_every_order):
    x, weight = inputs(9, 320)
    rows = np.array([8, 0, 3, 3, 5], np.int32)

    def run():
        out = device.alloc((5, 320), weight.dtype)
        rms_norm_rows(device, NormInput(device.upload(x), device.upload(weight), EPS), device.upload(rows), out)
        return device.download(out)

    assert np.array_equal(in_every_order(run), normed(device, x, weight)[rows])
