"""The whole model on the GPU: the steps of `llama3/model/transformer.py`, each of them a kernel launch or two."""

import functools
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.activations import PREFILL_CHUNK_ALONE, Activations
from llama3.cuda.arrays import NormInput, RopeTable
from llama3.cuda.attention import attention
from llama3.cuda.attention_prompt import attention_prompt, tiles
from llama3.cuda.decoding import Decoding, DecodingStep
from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.embedding import embedding
from llama3.cuda.feed_forward import swiglu
from llama3.cuda.group import Group
from llama3.cuda.kv_cache import KVCache
from llama3.cuda.linear import linear, linear_add, norm_linear, norm_swiglu, norm_then_linear
from llama3.cuda.lora import Lora, attention_widths, upload_adapters
from llama3.cuda.memory import check_shape
from llama3.cuda.qkv import norm_qkv_rope
from llama3.cuda.rms_norm import rms_norm_rows
from llama3.cuda.rope import rope
from llama3.cuda.sampler import ReadSamples
from llama3.cuda.trace import Tracer
from llama3.cuda.weights import Weights
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.lora import Adapter
from llama3.model.rope import rope_table
from llama3.model.transformer import Trace
from llama3.sampler import Sample, SequenceSampler


class Transformer:
    """The model as the engine runs it on a GPU. Its counterpart on the CPU is `llama3/cpu_model.py`."""

    prefill_chunk = PREFILL_CHUNK_ALONE
    mixed_prefill_chunk = 512  # enough rows for fast products, few enough for a short step

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        weights: Weights,
        adapters: Mapping[str, Adapter] | None = None,
        rope_angles: str = "float64",
        group: Group | None = None,
    ):
        """rope_angles: see `rope_table`. group: of the ranks, if config, weights and adapters are the part of one.

        Raises DeviceError for a shape that the kernels do not support."""
        check_shape(config)
        self.device, self.config, self.weights, self.group = device, config, weights, group
        self.adapters = upload_adapters(device, config, adapters or {})
        cos, sin = rope_table(config, config.max_seq_len, rope_angles)
        self.rope_table = RopeTable(device.upload(cos), device.upload(sin))
        self._activations = Activations.alloc(device, config, 1)
        self._decodings: WeakKeyDictionary[KVCache, Decoding] = WeakKeyDictionary()

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.device, self.config, slots, max_len)

    def forward(self, batch: Batch, cache: KVCache, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """Run the batch's tokens and append them to their slots, as `forward` of the NumPy model does.

        logit_rows: which of the T rows to compute logits for -> (len(logit_rows), vocab_size) float32.
        """
        a = self.run(batch, cache, trace)
        if not len(logit_rows):
            return np.empty((0, self.config.vocab_size), np.float32)
        return self.device.download(self._logits_of_rows(a, logit_rows, trace))

    def step(
        self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]
    ) -> "DecodingStep | Pending":
        """Run the batch, then draw the next token of every sequence that has a sampler (None: still in its prompt)."""
        decoding = self._decoding(cache)
        drawing = [i for i, sampler in enumerate(samplers) if sampler is not None]
        used_samplers = [sampler for sampler in samplers if sampler is not None]
        if len(drawing) == len(batch.tokens) <= decoding.max_rows and not batch.adapters:  # one row each, all draw
            return decoding.step(batch, cache, used_samplers, self._launch_decoding)
        decoding.forget()
        a = self.run(batch, cache)
        if not drawing:
            return Pending(list, drawing, len(samplers))
        logits = self._logits_of_rows(a, batch.last_rows[drawing])
        read_samples = decoding.draw(logits, [batch.slots[i] for i in drawing], used_samplers)
        return Pending(read_samples, drawing, len(samplers))

    def _decoding(self, cache: KVCache) -> Decoding:
        if cache not in self._decodings:
            self._decodings[cache] = Decoding(self.device, self.config, len(cache.lengths), self.group)
        return self._decodings[cache]

    def _launch_decoding(self, a: Activations, cache: KVCache, logits: Array) -> None:
        self.layers(a, cache, single_rows=len(a.tokens), prompt_tiles=None)
        self.logits(a, logits)

    def run(self, batch: Batch, cache: KVCache, trace: Trace | None = None) -> Activations:
        """Run any batch without a graph: its first sequences have one row each, the rest are chunks of prompts."""
        T, counts = len(batch.tokens), batch.counts
        if self.group:
            self.group.announce("run", cache, batch)
        starts = tuple(cache.lengths[slot] for slot in batch.slots)
        for slot, start, count in zip(batch.slots, starts, counts):
            assert start + count <= cache.max_len, (
                f"slot {slot} holds {cache.max_len} positions; the step needs {start + count}"
            )
        if len(self._activations.tokens) < T:
            self._activations = Activations.alloc(self.device, self.config, T)
        a = self._activations.first(T)
        self.device.upload(batch.tokens, into=a.tokens)
        positions = np.concatenate([start + np.arange(n, dtype=np.int32) for start, n in zip(starts, counts)])
        self.device.upload(positions.astype(np.int32), into=a.positions)
        self.device.upload(np.repeat(np.array(batch.slots, np.int32), counts), into=a.slots)

        single_rows = next((i for i, n in enumerate(counts) if n > 1), len(counts))
        prompts = slice(single_rows, None)
        host_tiles = tiles(self.device, counts[prompts], starts[prompts], batch.slots[prompts], single_rows)
        prompt_tiles = self.device.upload(host_tiles) if len(host_tiles) else None
        lora = Lora(self.device, self.adapters, batch) if batch.adapters else None
        parts = list(zip(batch.slots, starts, counts))
        tracer = Tracer(self.device, self.config, a, trace, parts) if trace else None
        self.layers(a, cache, single_rows, prompt_tiles, tracer, lora)
        for slot, n in zip(batch.slots, counts):
            cache.advance(slot, n)
        return a

    def layers(
        self,
        a: Activations,
        cache: KVCache,
        single_rows: int,
        prompt_tiles: Array | None,
        tracer: Tracer | None = None,
        lora: Lora | None = None,
    ) -> None:
        """From a.tokens to a.x, the residual stream after the last layer. A graph can hold all of it.

        In attention the first `single_rows` rows are handled one by one, and `prompt_tiles` (see `attention_prompt`)
        covers the other rows.
        """
        embedding(self.device, a.tokens, self.weights.tok_embeddings, a.x)
        if tracer:
            tracer.embedding()
        for i in range(self.config.n_layers):
            self._attention_block(i, a, cache, single_rows, prompt_tiles, lora, tracer)
            self._feed_forward_block(i, a, lora, tracer)

    def _attention_block(
        self,
        i: int,
        a: Activations,
        cache: KVCache,
        single_rows: int,
        prompt_tiles: Array | None,
        lora: Lora | None,
        tracer: Tracer | None,
    ) -> None:
        """a.x += wo @ attention(rms_norm(a.x)), in layer i."""
        device, c, layer, layer_cache = self.device, self.config, self.weights.layers[i], cache.layer(i)
        T = len(a.tokens)
        source = NormInput(a.x, layer.attention_norm, c.norm_eps)
        if tracer:
            tracer.before_attention(source, layer.wqkv, fused=T == 1 and not lora)
        if T == 1 and not lora:
            norm_qkv_rope(device, source, layer.wqkv, self.rope_table, a.rows, a.q, layer_cache)
        else:
            qkv = a.qkv.reshape(T, -1)
            norm_then_linear(device, source, layer.wqkv, a.h, qkv)
            if lora:
                lora.add(i, attention_widths(c), a.h, qkv)
            rope(device, a.qkv, self.rope_table, a.rows, a.q, layer_cache)
        if single_rows:
            first = a.first(single_rows)
            attention(device, first.q, layer_cache, first.rows, cache.workspace, first.attention_out)
        if prompt_tiles is not None:
            attention_prompt(device, a.q, layer_cache, prompt_tiles, a.attention_out)
        attention_out = a.attention_out.reshape(T, -1)
        self._add(i, "wo", attention_out, layer.wo, a.x, lora)
        if tracer:
            tracer.after_attention(i, layer_cache)

    def _feed_forward_block(self, i: int, a: Activations, lora: Lora | None, tracer: Tracer | None) -> None:
        """a.x += w2 @ swiglu(rms_norm(a.x)), in layer i."""
        device, c, layer = self.device, self.config, self.weights.layers[i]
        source = NormInput(a.x, layer.ffn_norm, c.norm_eps)
        if tracer:
            tracer.before_feed_forward(source, layer.w13, lora=lora is not None)
        if lora:  # norm and product are two launches, because the adapters need the norm, too
            norm_then_linear(device, source, layer.w13, a.h, a.gate_up)
            lora.add(i, {"w1": c.hidden_dim, "w3": c.hidden_dim}, a.h, a.gate_up)
            swiglu(device, a.gate_up, a.hidden)
        else:
            norm_swiglu(device, source, layer.w13, a.h, a.gate_up, a.hidden)
        self._add(i, "w2", a.hidden, layer.w2, a.x, lora)
        if tracer:
            tracer.after_feed_forward(i)

    def _add(self, i: int, name: str, x: Array, w: Array, out: Array, lora: Lora | None) -> None:
        """out += x @ w.T. Each rank has a part of every sum, and the residual stream counts once: in rank 0's part."""
        add = linear_add if self.group is None or self.group.rank == 0 else linear
        add(self.device, x, w, out)
        if lora:
            lora.add(i, {name: self.config.dim}, x, out)
        if self.group:
            self.group.all_reduce(out)

    def logits(self, a: Activations, out: Array) -> None:
        """The logits of every row, into out (T, vocab_size) float32."""
        w = self.weights
        norm_linear(self.device, NormInput(a.x, w.norm, self.config.norm_eps), w.output, a.h, out)

    def _logits_of_rows(self, a: Activations, logit_rows: np.ndarray, trace: Trace | None = None) -> Array:
        """The logits of some rows, in any order -> (len(logit_rows), vocab_size) float32, on the device."""
        device, c, w = self.device, self.config, self.weights
        out = device.alloc((len(logit_rows), c.vocab_size), np.float32)
        h = device.alloc((len(logit_rows), c.dim), bfloat16)
        rows = device.upload(np.asarray(logit_rows, np.int32))
        rms_norm_rows(device, NormInput(a.x, w.norm, c.norm_eps), rows, h)
        if trace:
            trace("norm", device.download(h).astype(np.float32))
        linear(device, h, w.output, out)
        return out


class Pending:
    """The samples of a step outside the graphs, which the device may still be computing."""

    def __init__(self, read_samples: ReadSamples, drawing: list[int], n: int):
        """drawing: which of the n sequences of the batch draw a token."""
        self._read_samples = functools.cache(read_samples)  # it may only be called once
        self._drawing, self._n = drawing, n

    def samples(self) -> list[Sample | LogitsError | None]:
        """For each sequence of the batch its token, the reason why none could be drawn, or None if it does not draw."""
        samples: list[Sample | LogitsError | None] = [None] * self._n
        for i, sample in zip(self._drawing, self._read_samples()):
            samples[i] = sample
        return samples

    def launch_next(self) -> None:
        """The next step needs this one's tokens on the host."""
