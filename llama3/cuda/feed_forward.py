"""SwiGLU as a launch of its own, after cuBLAS or after LoRA adapters (kernels/feed_forward.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

SWIGLU = Kernel("feed_forward.cu", "swiglu")
THREADS = 256


def swiglu(device: Device, gate_up: Array, out: Array) -> None:
    """out (T, hidden_dim) bfloat16 = silu(gate) * up.

    gate_up (T, 2 * hidden_dim) bfloat16: in each row gate, then up.
    """
    rows, hidden_dim = out.shape
    assert gate_up.shape == (rows, 2 * hidden_dim) and hidden_dim % 8 == 0, (gate_up.shape, out.shape)
    args = [gate_up, out, np.int32(rows), np.int32(hidden_dim)]
    device.launch(SWIGLU, (-(-rows * hidden_dim // 8 // THREADS),), (THREADS,), args, dependent=True)
