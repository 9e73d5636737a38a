"""The working memory of a step: the tokens and positions of its rows, and their activations within a layer."""

from dataclasses import dataclass

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.arrays import Rows
from llama3.cuda.device import Array, Device, bfloat16

# Prompt tokens of a step in which no request decodes. With more rows a step, the weights are read less often. A step of
# this size takes an H200 about 50 ms (predicted, not measured).
PREFILL_CHUNK_ALONE = 2048


@dataclass(frozen=True)
class Activations:
    """T rows. All are bfloat16, except for the residual stream and the three arrays that describe the rows."""

    tokens: Array  # (T,) int32
    positions: Array  # (T,) int32; -1: a padding row of a graph
    slots: Array  # (T,) int32
    x: Array  # (T, dim) float32: the residual stream
    h: Array  # (T, dim): RMSNorm of x
    qkv: Array  # (T, n_heads + 2 * n_kv_heads, head_dim)
    q: Array  # (T, n_heads, head_dim): rotated
    attention_out: Array  # (T, n_heads, head_dim)
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

    @property
    def rows(self) -> Rows:
        return Rows(self.positions, self.slots)

    def first(self, rows: int) -> "Activations":
        """The first `rows` rows, as views of the same memory."""
        return Activations(*(array[:rows] for array in vars(self).values()))
