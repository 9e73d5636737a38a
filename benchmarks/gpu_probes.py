"""The limits of a GPU, by kernels/probes.cu: what every share in gpu.py's report is relative to."""

import time

import numpy as np
import torch
from gpu_ours import array_of  # the files beside this one
from gpu_timing import timed

from llama3.cuda.device import Device
from llama3.cuda.launch import Kernel

READ = 1 << 32  # bytes
READS = 10  # launches in a timing: the cost of the first and the wait at the end then hardly count
LAUNCHES = 1000
READ_ONLY, NOTHING, GRID_SYNC = (Kernel("probes.cu", name) for name in ("read_only", "nothing", "grid_sync"))


def probes(device: Device, torch_device: str) -> dict[str, float]:
    """TB/s of reading; microseconds of a launch, of a kernel in a graph, of a barrier of all blocks."""
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    found = {"read_only_TB_s": read_rate(device, torch_device, 8 * blocks)}

    def launches(dependent: bool) -> None:
        for _ in range(LAUNCHES):
            device.launch(NOTHING, (blocks,), (256,), [], dependent=dependent)

    found["launch_us"] = 1e3 * min(timed(device.sync, lambda: launches(False), LAUNCHES))
    for name, dependent in (("graph_us", False), ("dependent_graph_us", True)):
        with device.capture() as graph:
            launches(dependent)
        found[name] = 1e3 * min(timed(device.sync, lambda graph=graph: device.replay(graph), LAUNCHES))
    device.sync()
    start = time.perf_counter()
    launches(False)
    found["launch_call_us"] = (time.perf_counter() - start) / LAUNCHES * 1e6  # spent in Python and CuPy
    counter = device.upload(np.zeros(1, np.uint32))

    def meet() -> None:
        device.upload(np.zeros(1, np.uint32), into=counter)
        device.launch(GRID_SYNC, (blocks,), (256,), [counter, np.int32(LAUNCHES)])

    found["meeting_us"] = 1e3 * min(timed(device.sync, meet, LAUNCHES))
    return found


def read_rate(device: Device, torch_device: str, blocks: int) -> float:
    """TB/s of reading random bits, the best of the runs: a limit, and the other runs show what disturbs."""
    bits = torch.randint(-(2**63), 2**63 - 1, (READ // 8,), dtype=torch.int64, device=torch_device)
    torch.cuda.synchronize()
    data, out = array_of(bits.view(torch.bfloat16)), device.upload(np.zeros(1, np.uint32))
    args = [data, out, np.int64(READ // 16)]

    def run() -> None:
        for _ in range(READS):
            device.launch(READ_ONLY, (blocks,), (256,), args)

    return READ / min(timed(device.sync, run, READS, runs=7)) / 1e9
