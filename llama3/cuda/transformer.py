"""The whole model on the GPU: the steps of `llama3/model/transformer.py`, each a launch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.activations import PREFILL_CHUNK_ALONE, Activations
from llama3.cuda.attention import attention
from llama3.cuda.attention_prompt import attention_prompt, tiles
from llama3.cuda.decoding import Decoding
from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.embedding import embedding
from llama3.cuda.feed_forward import swiglu
from llama3.cuda.kv_cache import KVCache
from llama3.cuda.linear import linear, linear_add, norm_linear, norm_swiglu, norm_then_linear
from llama3.cuda.lora import Lora, attention_widths, upload_adapters
from llama3.cuda.memory import check_shape
from llama3.cuda.qkv import norm_qkv_rope
from llama3.cuda.rms_norm import rms_norm_rows
from llama3.cuda.rope import rope
from llama3.cuda.weights import Weights
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.lora import Adapter
from llama3.model.rope import rope_table
from llama3.model.transformer import Trace
from llama3.sampler import Sample, SequenceSampler


class Transformer:
    prefill_chunk = PREFILL_CHUNK_ALONE

    def __init__(
        self, device: Device, config: ModelConfig, weights: Weights, adapters: Mapping[str, Adapter] | None = None
    ):
        """Raises DeviceError for a shape that the kernels do not know."""
        check_shape(config)
        self.device, self.config, self.weights = device, config, weights
        self.adapters = upload_adapters(device, config, adapters or {})
        cos, sin = rope_table(config, config.max_seq_len)
        self.rope_table = device.upload(cos), device.upload(sin)  # (max_seq_len, head_dim / 2) float32
        self._activations = Activations.alloc(device, config, 1)
        self._decodings: WeakKeyDictionary[KVCache, Decoding] = WeakKeyDictionary()

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.device, self.config, slots, max_len)

    def forward(self, batch: Batch, cache: KVCache, rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """Run the batch's tokens and append them to their slots; as `forward` of the NumPy model, logits and all."""
        device = self.device
        a = self._run(batch, cache, trace)
        if not len(rows):
            return np.empty((0, self.config.vocab_size), np.float32)
        logits = device.alloc((len(rows), self.config.vocab_size), np.float32)
        self._some_logits(a, rows, logits, trace)
        return device.download(logits)

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> "Pending":
        """Run the batch, then draw the next token of every sequence that has a sampler (None: still in its prompt)."""
        decoding = self._decoding(cache)
        drawing = [i for i, sampler in enumerate(samplers) if sampler is not None]
        if len(drawing) == len(batch.tokens) <= decoding.max_rows and not batch.adapters:  # one row each, all drawn
            read_samples = decoding.step(batch, cache, [s for s in samplers if s is not None], self._launch_decoding)
            return Pending(read_samples, drawing, len(samplers))
        decoding.forget()
        a = self._run(batch, cache)
        if not drawing:
            return Pending(list, drawing, len(samplers))
        logits = self.device.alloc((len(drawing), self.config.vocab_size), np.float32)
        self._some_logits(a, batch.last_rows[drawing], logits)
        slots = [batch.slots[i] for i in drawing]
        return Pending(decoding.draw(logits, slots, [samplers[i] for i in drawing]), drawing, len(samplers))  # type: ignore[misc]

    def _decoding(self, cache: KVCache) -> Decoding:
        if cache not in self._decodings:
            self._decodings[cache] = Decoding(self.device, self.config, len(cache.lengths))
        return self._decodings[cache]

    def _launch_decoding(self, a: Activations, cache: KVCache, logits: Array) -> None:
        self.layers(a, cache, singles=len(a.tokens), tiles=None)
        self.logits(a, logits)

    def _run(self, batch: Batch, cache: KVCache, trace: Trace | None = None) -> Activations:
        """Any batch, launch by launch: in front sequences of one row, then pieces of prompts."""
        T, counts = len(batch.tokens), batch.counts
        starts = tuple(cache.lengths[slot] for slot in batch.slots)
        for slot, start, count in zip(batch.slots, starts, counts):
            assert start + count <= cache.max_len, (
                f"slot {slot} holds {cache.max_len} positions; {start + count} asked for"
            )
        if len(self._activations.tokens) < T:
            self._activations = Activations.alloc(self.device, self.config, T)
        a = self._activations.first(T)
        self.device.upload(batch.tokens, into=a.tokens)
        positions = np.concatenate([start + np.arange(n, dtype=np.int32) for start, n in zip(starts, counts)])
        self.device.upload(positions.astype(np.int32), into=a.positions)
        self.device.upload(np.repeat(np.array(batch.slots, np.int32), counts), into=a.slots)

        singles = next((i for i, n in enumerate(counts) if n > 1), len(counts))
        pieces = tiles(counts[singles:], starts[singles:], batch.slots[singles:], first_row=singles)
        lora = Lora(self.device, self.adapters, batch) if batch.adapters else None
        self.layers(a, cache, singles, self.device.upload(pieces) if len(pieces) else None, trace, lora)
        for slot, n in zip(batch.slots, counts):
            cache.advance(slot, n)
        return a

    def layers(
        self,
        a: Activations,
        cache: KVCache,
        singles: int,
        tiles: Array | None,
        trace: Trace | None = None,
        lora: Lora | None = None,
    ) -> None:
        """a.tokens -> a.x, the residual stream behind the last layer. Nothing but launches where T <= 64.

        The first `singles` rows each attend alone; `tiles` (see `attention_prompt.tiles`) has the others. With `lora`
        norm and product are two launches, since the adapters need what lies between them.
        """
        device, c, w = self.device, self.config, self.weights
        T = len(a.tokens)
        record = self._recorder(a, trace)
        embedding(device, a.tokens, w.tok_embeddings, a.x)
        record("tok_embeddings")
        for i, layer in enumerate(w.layers):
            k, v = cache.k[i], cache.v[i]
            qkv, mixed = a.qkv.reshape(T, -1), a.mixed.reshape(T, -1)
            turned = self.rope_table, a.positions, a.slots, a.q, k, v
            if T == 1 and not lora:
                norm_qkv_rope(device, a.x, layer.attention_norm, c.norm_eps, layer.wqkv, *turned)
            else:
                norm_then_linear(device, a.x, layer.attention_norm, c.norm_eps, layer.wqkv, a.h, qkv)
                if lora:
                    lora.add(i, attention_widths(c), a.h, qkv)
                rope(device, a.qkv, *turned)
            if singles:
                rows = a.first(singles)
                attention(device, rows.q, k, v, rows.positions, rows.slots, cache.workspace, rows.mixed)
            if tiles is not None:
                attention_prompt(device, a.q, k, v, tiles, a.mixed)
            linear_add(device, mixed, layer.wo, a.x)
            if lora:
                lora.add(i, {"wo": c.dim}, mixed, a.x)
            record(f"layers.{i}.attention")
            if lora:
                norm_then_linear(device, a.x, layer.ffn_norm, c.norm_eps, layer.w13, a.h, a.gate_up)
                lora.add(i, {"w1": c.hidden_dim, "w3": c.hidden_dim}, a.h, a.gate_up)
                swiglu(device, a.gate_up, a.hidden)
            else:
                norm_swiglu(device, a.x, layer.ffn_norm, c.norm_eps, layer.w13, a.h, a.gate_up, a.hidden)
            linear_add(device, a.hidden, layer.w2, a.x)
            if lora:
                lora.add(i, {"w2": c.dim}, a.hidden, a.x)
            record(f"layers.{i}.feed_forward")
            record(f"layers.{i}")

    def logits(self, a: Activations, out: Array) -> None:
        """Of every row, into out (T, vocab_size) float32."""
        w = self.weights
        norm_linear(self.device, a.x, w.norm, self.config.norm_eps, w.output, a.h, out)

    def _some_logits(self, a: Activations, rows: np.ndarray, out: Array, trace: Trace | None = None) -> None:
        device, w = self.device, self.weights
        h = device.alloc((len(rows), self.config.dim), bfloat16)
        rms_norm_rows(device, a.x, device.upload(np.asarray(rows, np.int32)), w.norm, self.config.norm_eps, h)
        if trace:
            trace("norm", device.download(h).astype(np.float32))
        linear(device, h, w.output, out)

    def _recorder(self, a: Activations, trace: Trace | None) -> Callable[[str], None]:
        """What a block adds to the residual stream is told by the difference it makes."""
        if trace is None:
            return lambda name: None
        before = np.zeros(0, np.float32)

        def record(name: str) -> None:
            nonlocal before
            x = self.device.download(a.x)
            if name.endswith(("attention", "feed_forward")):
                trace(name, x - before)
            else:
                trace(name, x)
            before = x

        return record


class Pending:
    """Samples that are on their way."""

    def __init__(self, wait: Callable[[], list[Sample | LogitsError]], drawing: list[int], n: int):
        self._wait, self._drawing, self._n = functools.cache(wait), drawing, n  # it is waited for once

    def samples(self) -> list[Sample | LogitsError | None]:
        """One for each sequence of the batch: its token, why it could not be drawn, or None where none was asked."""
        samples: list[Sample | LogitsError | None] = [None] * self._n
        for i, sample in zip(self._drawing, self._wait()):
            samples[i] = sample
        return samples
