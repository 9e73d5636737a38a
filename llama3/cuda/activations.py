"""The working memory of a step: what its rows are, and what becomes of them on their way through a layer."""

from dataclasses import dataclass

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.device import Array, Device, bfloat16

# Prompt tokens in a step where no request decodes: longer products read the weights less often. 50 ms on an H200.
PREFILL_CHUNK_ALONE = 2048


@dataclass(frozen=True)
class Activations:
    """Of T rows. bfloat16, but for the residual stream and what the rows are."""

    tokens: Array  # (T,) int32
    positions: Array  # (T,) int32; -1: nobody's row, which fills up a graph
    slots: Array  # (T,) int32
    x: Array  # (T, dim) float32: the residual stream
    h: Array  # (T, dim)
    qkv: Array  # (T, n_heads + 2 * n_kv_heads, head_dim)
    q: Array  # (T, n_heads, head_dim)
    mixed: Array  # (T, n_heads, head_dim)
    gate_up: Array  # (T, 2 * hidden_dim)
    hidden: Array  # (T, hidden_dim)

    @classmethod
    def alloc(cls, device: Device, c: ModelConfig, rows: int) -> "Activations":
        return cls(
            device.alloc((rows,), np.int32),
            device.alloc((rows,), np.int32),
            device.alloc((rows,), np.int32),
            device.alloc((rows, c.dim), np.float32),
            device.alloc((rows, c.dim), bfloat16),
            device.alloc((rows, c.n_heads + 2 * c.n_kv_heads, c.head_dim), bfloat16),
            device.alloc((rows, c.n_heads, c.head_dim), bfloat16),
            device.alloc((rows, c.n_heads, c.head_dim), bfloat16),
            device.alloc((rows, 2 * c.hidden_dim), bfloat16),
            device.alloc((rows, c.hidden_dim), bfloat16),
        )

    def first(self, rows: int) -> "Activations":
        return Activations(*(array[:rows] for array in vars(self).values()))
