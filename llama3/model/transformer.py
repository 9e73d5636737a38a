"""The forward pass: embedding, n_layers of attention and feed-forward around a residual stream, norm, output matrix."""

from collections.abc import Callable, Mapping

import numpy as np

from llama3.config import ModelConfig
from llama3.model.attention import attention
from llama3.model.batch import Batch
from llama3.model.feed_forward import feed_forward
from llama3.model.kv_cache import KVCache
from llama3.model.linear import linear, linears
from llama3.model.lora import Adapter, with_adapters
from llama3.model.rms_norm import rms_norm
from llama3.model.rope import rope_table, rotate
from llama3.model.weights import Weights

Trace = Callable[[str, np.ndarray], None]


class Transformer:
    """The model in NumPy. `adapters`: the LoRA adapters that a batch may name."""

    def __init__(self, config: ModelConfig, weights: Weights, adapters: Mapping[str, Adapter] | None = None):
        self.config, self.weights, self.adapters = config, weights, adapters or {}
        self.attention = attention  # a faster function for the same may take its place
        self.cos, self.sin = rope_table(config, config.max_seq_len)  # (max_seq_len, head_dim / 2)

    def use_rope_angles(self, angles: str) -> None:
        """Rotate by "float64" or by "float32" angles: see `rope_table`."""
        self.cos, self.sin = rope_table(self.config, self.config.max_seq_len, angles)

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.config, slots, max_len)

    def forward(self, batch: Batch, cache: KVCache, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """Run the batch's T tokens and append their keys and values to their slots.

        logit_rows: which rows to give logits for -> (len(logit_rows), vocab_size) float32. Only these rows are
        multiplied by the output matrix. `trace`, if given, is called with the name and value of each block's output.
        """
        trace = trace or (lambda name, value: None)
        c, w = self.config, self.weights
        T = len(batch.tokens)
        lengths = [cache.lengths[slot] + n for slot, n in zip(batch.slots, batch.counts)]  # after this step
        positions = np.concatenate([np.arange(end - n, end) for end, n in zip(lengths, batch.counts)])  # (T,)
        cos, sin = self.cos[positions], self.sin[positions]  # (T, head_dim / 2)

        x = w.tok_embeddings[batch.tokens].astype(np.float32)  # (T, dim): the residual stream
        trace("tok_embeddings", x)
        for i, layer in enumerate(with_adapters(w.layers, batch, self.adapters)):
            h = rms_norm(x, layer.attention_norm, c.norm_eps)  # (T, dim)
            q, k, v = linears(h, layer.wq, layer.wk, layer.wv)
            q = rotate(q.reshape(T, c.n_heads, c.head_dim), cos, sin)  # (T, n_heads, head_dim)
            k = rotate(k.reshape(T, c.n_kv_heads, c.head_dim), cos, sin)  # (T, n_kv_heads, head_dim)
            v = v.reshape(T, c.n_kv_heads, c.head_dim)  # (T, n_kv_heads, head_dim)
            heads = np.empty((T, c.n_heads * c.head_dim), np.float32)
            for j, span in enumerate(batch.spans):  # attention alone mixes rows, so it runs sequence by sequence
                keys, values = cache.write(batch.slots[j], i, k[span], v[span])  # (n_kv_heads, lengths[j], head_dim)
                heads[span] = self.attention(q[span], keys, values)
            attention_out = linear(heads, layer.wo)  # (T, dim)
            trace(f"layers.{i}.attention", attention_out)
            x = x + attention_out  # (T, dim)

            ffn_in = rms_norm(x, layer.ffn_norm, c.norm_eps)  # (T, dim)
            ffn_out = feed_forward(ffn_in, layer.w1, layer.w2, layer.w3)  # (T, dim)
            trace(f"layers.{i}.feed_forward", ffn_out)
            x = x + ffn_out  # (T, dim)
            trace(f"layers.{i}", x)

        for slot, n in zip(batch.slots, batch.counts):
            cache.advance(slot, n)
        x = rms_norm(x[logit_rows], w.norm, c.norm_eps)  # (len(logit_rows), dim)
        trace("norm", x)
        return linear(x, w.output)
