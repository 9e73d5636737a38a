"""The forward pass: embedding, n_layers of attention and feed-forward around a residual stream, norm, output matrix."""

from collections.abc import Callable, Mapping
from functools import partial

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
    """The model in NumPy. adapters: the LoRA adapters that a batch may name; rope_angles: see `rope_table`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        adapters: Mapping[str, Adapter] | None = None,
        rope_angles: str = "float64",
    ):
        self.config, self.weights, self.adapters = config, weights, adapters or {}
        self.attention = attention  # a faster function for the same may take its place
        self.cos, self.sin = rope_table(config, config.max_seq_len, rope_angles)  # (max_seq_len, head_dim / 2)

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.config, slots, max_len)

    def forward(self, batch: Batch, cache: KVCache, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """Run the batch's T tokens and append their keys and values to their slots.

        logit_rows: which rows to give logits for -> (len(logit_rows), vocab_size) float32. Only these rows are
        multiplied by the output matrix. `trace`, if given, is called with the name and value of each intermediate
        result (activation_names.py), but for scores and weights, which attention never holds all at once.
        """
        c, w, slots, T = self.config, self.weights, batch.slots, len(batch.tokens)
        lengths = [cache.lengths[slot] + n for slot, n in zip(slots, batch.counts)]  # after this step
        positions = np.concatenate([np.arange(end - n, end) for end, n in zip(lengths, batch.counts)])  # (T,)
        cos, sin = self.cos[positions], self.sin[positions]  # (T, head_dim / 2)

        x = w.tok_embeddings[batch.tokens].astype(np.float32)  # (T, dim): the residual stream
        if trace:
            trace("tok_embeddings", x)
        for i, layer in enumerate(with_adapters(w.layers, batch, self.adapters)):
            see = partial(trace_layer, trace, i) if trace else None
            h = rms_norm(x, layer.attention_norm, c.norm_eps)  # (T, dim)
            q, k, v = (a.reshape(T, -1, c.head_dim) for a in linears(h, layer.wq, layer.wk, layer.wv))
            q_rope = rotate(q, cos, sin)  # (T, n_heads, head_dim)
            k_rope = rotate(k, cos, sin)  # (T, n_kv_heads, head_dim)
            heads = np.empty((T, c.n_heads * c.head_dim), np.float32)
            for j, span in enumerate(batch.spans):  # attention alone mixes rows, so it runs sequence by sequence
                keys, values = cache.write(slots[j], i, k_rope[span], v[span])  # (n_kv_heads, lengths[j], head_dim)
                heads[span] = self.attention(q_rope[span], keys, values)
            attention_out = linear(heads, layer.wo)  # (T, dim)
            x = x + attention_out  # (T, dim)
            if see:
                see(attention_norm=h, q=q, k=k, v=v, q_rope=q_rope, k_rope=k_rope, heads=heads.reshape(q.shape))
                see(attention=attention_out, attention_residual=x)

            ffn_in = rms_norm(x, layer.ffn_norm, c.norm_eps)  # (T, dim)
            if see:
                see(ffn_norm=ffn_in)
            ffn_out = feed_forward(ffn_in, layer.w1, layer.w2, layer.w3, see)  # (T, dim)
            x = x + ffn_out  # (T, dim)
            if see:
                see(feed_forward=ffn_out, layer=x)

        for slot, n in zip(slots, batch.counts):
            cache.advance(slot, n)
        x = rms_norm(x[logit_rows], w.norm, c.norm_eps)  # (len(logit_rows), dim)
        if trace:
            trace("norm", x)
        return linear(x, w.output)


def trace_layer(trace: Trace, i: int, **values: np.ndarray) -> None:
    """Pass values of layer i to `trace`: `heads` (T, n_heads, head_dim) by head, `layer` under the layer's own name."""
    for name, value in values.items():
        if name == "heads":
            for j in range(value.shape[1]):
                trace(f"layers.{i}.heads.{j}.output", value[:, j])
        else:
            trace(f"layers.{i}" if name == "layer" else f"layers.{i}.{name}", value)
