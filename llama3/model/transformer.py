"""The whole model: embedding, n_layers of attention and feed-forward around a residual stream, norm, output."""

from collections.abc import Callable, Mapping

import numpy as np

from llama3.config import ModelConfig
from llama3.model.attention import attention
from llama3.model.batch import Batch
from llama3.model.feed_forward import feed_forward
from llama3.model.kv_cache import KVCache
from llama3.model.linear import linear
from llama3.model.lora import Adapter, adapted
from llama3.model.rms_norm import rms_norm
from llama3.model.rope import rope_table, rotate
from llama3.model.weights import Weights

Trace = Callable[[str, np.ndarray], None]


class Transformer:
    def __init__(self, config: ModelConfig, weights: Weights, adapters: Mapping[str, Adapter] | None = None):
        self.config, self.weights, self.adapters = config, weights, adapters or {}
        self.cos, self.sin = rope_table(config, config.max_seq_len)  # (max_seq_len, head_dim / 2)

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.config, slots, max_len)

    def forward(self, batch: Batch, cache: KVCache, rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """Run the batch's tokens and append them to their slots.

        rows: which of the T rows to give logits for -> (len(rows), vocab_size) float32. Only those pay for the output
        matrix. `trace` is called with the name and the value of every block's output, for comparisons.
        """
        record = trace or (lambda name, value: None)
        c, w = self.config, self.weights
        T = len(batch.tokens)
        positions = np.concatenate([cache.lengths[slot] + np.arange(n) for slot, n in zip(batch.slots, batch.counts)])
        cos, sin = self.cos[positions], self.sin[positions]  # (T, head_dim / 2)

        x = w.tok_embeddings[batch.tokens].astype(np.float32)  # (T, dim): the residual stream
        record("tok_embeddings", x)
        for i, layer in enumerate(adapted(w.layers, batch, self.adapters)):
            h = rms_norm(x, layer.attention_norm, c.norm_eps)  # (T, dim)
            q = rotate(linear(h, layer.wq).reshape(T, c.n_heads, c.head_dim), cos, sin)  # (T, n_heads, head_dim)
            k = rotate(linear(h, layer.wk).reshape(T, c.n_kv_heads, c.head_dim), cos, sin)  # (T, n_kv_heads, head_dim)
            v = linear(h, layer.wv).reshape(T, c.n_kv_heads, c.head_dim)  # (T, n_kv_heads, head_dim)
            mixed = np.empty((T, c.n_heads * c.head_dim), np.float32)
            for slot, span in zip(batch.slots, batch.spans):  # the one place that knows whose row is whose
                keys, values = cache.write(slot, i, k[span], v[span])  # (n_kv_heads, length, head_dim)
                mixed[span] = attention(q[span], keys, values)
            mixed = linear(mixed, layer.wo)  # (T, dim)
            record(f"layers.{i}.attention", mixed)
            x = x + mixed

            h = rms_norm(x, layer.ffn_norm, c.norm_eps)  # (T, dim)
            h = feed_forward(h, layer.w1, layer.w2, layer.w3)  # (T, dim)
            record(f"layers.{i}.feed_forward", h)
            x = x + h
            record(f"layers.{i}", x)

        for slot, n in zip(batch.slots, batch.counts):
            cache.advance(slot, n)
        x = rms_norm(x[rows], w.norm, c.norm_eps)  # (len(rows), dim)
        record("norm", x)
        return linear(x, w.output)  # (len(rows), vocab_size)
