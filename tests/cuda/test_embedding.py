"""The embedding kernels copy the rows of the table, bit for bit."""

import numpy as np
import pytest

from llama3.cuda.embedding import embedding
from llama3.cuda.launch import Kernel
from tests.cuda.kernel_checks import random


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("rows", "dim"), [(1, 64), (7, 192), (2, 2112), (300, 64)])
def test_copies_the_rows_exactly(device, in_every_order, rows, dim, naive):
    table = random(rows, 100, dim)
    tokens = np.random.default_rng(dim).integers(0, 100, rows).astype(np.int32)
    tokens[:2] = [99, 0][:rows]

    def run():
        x = device.alloc((rows, dim), np.float32)
        if naive:
            args = [device.upload(tokens), device.upload(table), x, np.int32(rows), np.int32(dim)]
            device.launch(Kernel("embedding.cu", "embedding_naive"), (-(-rows // 32),), (32,), args)
        else:
            embedding(device, device.upload(tokens), device.upload(table), x)
        return device.download(x)

    assert np.array_equal(in_every_order(run), table[tokens].astype(np.float32))
