"""This project's CUDA path, timed for gpu.py: on a GPU, or emulated on a CPU."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu_floor import shapes  # the files beside this one
from gpu_timing import timed

from llama3.config import ModelConfig
from llama3.cuda.activations import PREFILL_CHUNK_ALONE
from llama3.cuda.arrays import LayerCache
from llama3.cuda.attention_prompt import attention_prompt, tiles
from llama3.cuda.device import Array, CupyDevice, Device, bfloat16
from llama3.cuda.launch import Kernel
from llama3.cuda.linear import linear
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import LayerWeights, Weights
from llama3.model.batch import Batch
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams

FULL = SamplingParams(  # every parameter set
    temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.1,
    presence_penalty=0.1, seed=1,
)  # fmt: skip


def array_of(device: Device, tensor: torch.Tensor) -> Array:
    """The tensor's memory as an array: of CuPy on a GPU (through DLPack), of NumPy on a CPU."""
    if isinstance(device, CupyDevice):
        import cupy

        return cupy.from_dlpack(tensor.detach())
    return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def weights_of(device: Device, model: Any) -> Weights:
    """The weights of transformers' LlamaForCausalLM. Joined matrices are copies; others share its memory on a GPU."""

    def joined(*parts: torch.Tensor) -> Array:
        if len(parts) == 1 and isinstance(device, CupyDevice):
            return array_of(device, parts[0])
        out = device.alloc((sum(len(part) for part in parts), *parts[0].shape[1:]), bfloat16)
        row = 0
        for part in parts:
            device.copy(array_of(device, part), into=out[row : row + len(part)])
            row += len(part)
        return out

    layers = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        layers.append(
            LayerWeights(
                joined(layer.input_layernorm.weight),
                joined(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
                joined(attention.o_proj.weight),
                joined(layer.post_attention_layernorm.weight),
                joined(mlp.gate_proj.weight, mlp.up_proj.weight),
                joined(mlp.down_proj.weight),
            )
        )
    norm, head = joined(model.model.norm.weight), joined(model.lm_head.weight)
    return Weights(joined(model.model.embed_tokens.weight), layers, norm, head)


class Ours:
    def __init__(self, device: Device, c: ModelConfig, model: Any):
        self.device, self.config = device, c
        self.transformer = Transformer(device, c, weights_of(device, model))
        device.sync()

    def read(self, cache: Any, slot: int, tokens: np.ndarray, chunk: int = PREFILL_CHUNK_ALONE) -> None:
        """Read a prompt in chunks: by default those of the engine while no request decodes."""
        for i in range(0, len(tokens), chunk):
            rows = np.array([0]) if i + chunk >= len(tokens) else np.array([], int)
            self.transformer.forward(Batch.of([(slot, tokens[i : i + chunk])]), cache, rows)

    def prefill(self, T: int, chunk: int = PREFILL_CHUNK_ALONE) -> float:
        """Milliseconds for a prompt of T tokens, until the logits of its last token are in host memory."""
        cache = self.transformer.new_cache(1, self.config.max_seq_len)
        tokens = np.random.default_rng(T).integers(0, self.config.vocab_size, T).astype(np.int32)

        def run() -> None:
            cache.truncate(0, 0)
            self.read(cache, 0, tokens, chunk)

        return timed(self.device.sync, run)

    def decode(self, batch: int, context: int, steps: int, params: SamplingParams | None = None) -> float:
        """Milliseconds a step as the engine runs it: every token is drawn and read by the host."""
        cache = self.transformer.new_cache(batch, self.config.max_seq_len)
        rng = np.random.default_rng(batch)
        prompts = rng.integers(0, self.config.vocab_size, (batch, context)).astype(np.int32)
        for slot, prompt in enumerate(prompts):
            self.read(cache, slot, prompt[: -1 or None])
        vocab_size = self.config.vocab_size
        params = params or SamplingParams(temperature=0)

        def run() -> None:
            tokens = [int(prompt[-1]) for prompt in prompts]
            samplers = [SequenceSampler(params, prompt, vocab_size) for prompt in prompts]
            for slot in range(batch):
                cache.truncate(slot, context - 1)
            for _ in range(steps):
                rows = Batch.of([(slot, [token]) for slot, token in enumerate(tokens)])
                samples = self.transformer.step(rows, cache, samplers).samples()
                for i, (sample, sampler) in enumerate(zip(samples, samplers, strict=True)):
                    tokens[i] = sample.token
                    sampler.accept(sample.token)

        return timed(self.device.sync, run, steps)

    def product(self, name: str) -> float:
        """Milliseconds of a matrix times one row, layer after layer, so that no matrix is in the L2 cache."""
        w = self.transformer.weights
        field_of = {"qkv": "wqkv", "o": "wo", "gate_up": "w13", "down": "w2"}
        matrices = [getattr(layer, field_of[name]) for layer in w.layers] if name in field_of else [w.output]
        n_out, width = shapes(self.config)[name]
        x, out = self.device.upload(np.ones((1, width), bfloat16)), self.device.alloc((1, n_out), bfloat16)
        return self.recorded([lambda matrix=matrix: linear(self.device, x, matrix, out) for matrix in matrices])

    def recorded(self, launches: list[Callable[[], None]]) -> float:
        """Milliseconds of one launch when all are replayed as a graph."""
        for launch in launches:
            launch()
        with self.device.capture() as graph:
            for launch in launches:
                launch()
        return timed(self.device.sync, lambda: self.device.replay(graph), len(launches))

    def attention(self, T: int) -> float:
        """Milliseconds of one layer's attention over a prompt of T tokens."""
        c, device = self.config, self.device
        rng = np.random.default_rng(T)
        q = device.upload(rng.standard_normal((T, c.n_heads, c.head_dim), np.float32).astype(bfloat16))
        k, v = (
            device.upload(rng.standard_normal((1, c.n_kv_heads, T, c.head_dim), np.float32).astype(bfloat16))
            for _ in range(2)
        )
        out = device.alloc(q.shape, bfloat16)
        prompt_tiles = device.upload(tiles(device, (T,), (0,), (0,)))
        return timed(device.sync, lambda: attention_prompt(device, q, LayerCache(k, v), prompt_tiles, out))


def probes(device: Device, tiny: bool) -> dict[str, float]:
    """This GPU's limits: TB/s of reading; microseconds a launch, a kernel in a graph, a barrier of all blocks."""
    count = (1 << 12) if tiny else (1 << 32)  # bytes
    blocks = 1 if tiny else 8 * multiprocessors(device)
    data = device.alloc((count // 2,), bfloat16)
    out = device.upload(np.zeros(1, np.uint32))
    read, nothing, sync = (Kernel("probes.cu", name) for name in ("read_only", "nothing", "grid_sync"))
    args = [data, out, np.int64(count // 16)]
    ms = timed(device.sync, lambda: device.launch(read, (blocks,), (256,), args))
    found = {"read_only_TB_s": count / ms / 1e9}

    n = 10 if tiny else 1000

    def launches(dependent: bool) -> None:
        for _ in range(n):
            device.launch(nothing, (1 if tiny else multiprocessors(device),), (256,), [], dependent=dependent)

    found["launch_us"] = timed(device.sync, lambda: launches(False), n) * 1e3
    for name, dependent in (("graph_us", False), ("dependent_graph_us", True)):
        with device.capture() as graph:
            launches(dependent)
        found[name] = timed(device.sync, lambda graph=graph: device.replay(graph), n) * 1e3
    start = time.perf_counter()
    launches(False)
    found["launch_call_us"] = (time.perf_counter() - start) / n * 1e6  # spent in Python and CuPy

    def meet() -> None:
        counter = device.upload(np.zeros(1, np.uint32))
        device.launch(sync, (1 if tiny else multiprocessors(device),), (256,), [counter, np.int32(n)])

    found["meeting_us"] = timed(device.sync, meet, n) * 1e3
    return found


def multiprocessors(device: Device) -> int:
    import cupy

    return int(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["multiProcessorCount"])
