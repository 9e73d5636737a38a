"""The kernels that only the benchmark runs do the work for which it times them."""

import numpy as np
import pytest

from llama3.cuda.device import bfloat16
from llama3.cuda.launch import Kernel


@pytest.mark.parametrize("n", [1, 1000, 8 * 512 + 3])
def test_read_only_reads_every_piece_once(device, n):
    data = np.random.default_rng(n).integers(0, 2**32, (n, 4), dtype=np.uint32)
    weights = device.upload(data.view(bfloat16))
    out = device.upload(np.zeros(1, np.uint32))
    device.launch(Kernel("probes.cu", "read_only"), (2,), (256,), [weights, out, np.int64(n)])
    assert device.download(out)[0] == np.bitwise_xor.reduce(data.reshape(-1))


def test_blocks_meet_the_requested_number_of_times(device):
    count = device.upload(np.zeros(1, np.uint32))
    device.launch(Kernel("probes.cu", "grid_sync"), (1,), (256,), [count, np.int32(5)])
    assert device.download(count)[0] == 5


def test_nothing_can_be_recorded_in_a_row(device):
    with device.capture() as graph:
        for _ in range(3):
            device.launch(Kernel("probes.cu", "nothing"), (1,), (32,), [], dependent=True)
    device.replay(graph)
    device.sync()
