"""What a forward pass on the GPU gives to its `trace`: its arrays, copied to the host as float32.

Kernels that fuse several operations keep some values in registers. `Tracer` computes these once more, into memory that
the fused kernels do not use: the trace changes no result.
"""

from collections.abc import Sequence

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.activations import Activations
from llama3.cuda.arrays import LayerCache, NormInput
from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.linear import by_cublas, norm_then_linear
from llama3.cuda.quantised import Matrix
from llama3.model.transformer import Trace, trace_layer


class Tracer:
    """Calls `trace` after each block of a step. parts: slot, first position and number of rows of each sequence."""

    def __init__(
        self, device: Device, config: ModelConfig, a: Activations, trace: Trace, parts: Sequence[tuple[int, int, int]]
    ):
        self.device, self.config, self.a, self.trace, self.parts = device, config, a, trace, parts
        self.x = np.zeros(0, np.float32)  # (T, dim): the residual stream after the last block

    def embedding(self) -> None:
        self.x = self.device.download(self.a.x)
        self.trace("tok_embeddings", self.x)

    def before_attention(self, source: NormInput, wqkv: Matrix, fused: bool) -> None:
        """fused: whether one kernel computes norm, products and rotation."""
        if fused:
            norm_then_linear(self.device, source, wqkv, self.a.h, self.a.qkv.reshape(len(source.x), -1))

    def after_attention(self, i: int, layer_cache: LayerCache) -> None:
        c, qkv = self.config, self._read(self.a.qkv)  # (T, n_heads + 2 * n_kv_heads, head_dim)
        q, k, v = np.split(qkv, [c.n_heads, c.n_heads + c.n_kv_heads], axis=1)
        values = {"attention_norm": self._read(self.a.h), "q": q, "k": k, "v": v, "q_rope": self._read(self.a.q)}
        values |= {"k_rope": self._cached(layer_cache.k), "heads": self._read(self.a.attention_out)}
        added = self._added()
        trace_layer(self.trace, i, **values, attention=added, attention_residual=self.x)

    def before_feed_forward(self, source: NormInput, w13: Matrix, lora: bool) -> None:
        """lora: whether there are adapters, which have kernels of their own."""
        if not by_cublas(self.device, w13, len(source.x)) and not lora:
            norm_then_linear(self.device, source, w13, self.a.h, self.a.gate_up)

    def after_feed_forward(self, i: int) -> None:
        gate, up = np.split(self._read(self.a.gate_up), 2, axis=1)  # (T, hidden_dim)
        added = self._added()
        trace_layer(self.trace, i, ffn_norm=self._read(self.a.h), gate=gate, up=up, feed_forward=added, layer=self.x)

    def _added(self) -> np.ndarray:
        """What the last block has added to the residual stream. The kernels add in place, so it is a difference."""
        before, self.x = self.x, self.device.download(self.a.x)
        return self.x - before

    def _cached(self, array: Array) -> np.ndarray:
        """array (slots, n_kv_heads, max_len, head_dim): the rows of this step in it, (T, n_kv_heads, head_dim)."""
        found = []
        for slot, start, n in self.parts:
            rows = array[slot, :, start : start + n]  # (n_kv_heads, n, head_dim)
            whole = self.device.alloc(rows.shape, bfloat16)
            self.device.copy(rows, whole)
            found.append(self._read(whole).transpose(1, 0, 2))
        return np.concatenate(found)

    def _read(self, array: Array) -> np.ndarray:
        return self.device.download(array).astype(np.float32)
