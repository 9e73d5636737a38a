"""This project's CUDA path, timed for gpu.py."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gpu_floor import shapes  # the files beside this one
from gpu_timing import cache_length, decoded_tokens, graph_position, prompt_length, timed, timed_delivery, timed_graph
from gpu_torch import REPLAYS

from llama3.config import ModelConfig
from llama3.cuda.activations import PREFILL_CHUNK_ALONE
from llama3.cuda.arrays import LayerCache
from llama3.cuda.attention_prompt import attention_prompt, tiles
from llama3.cuda.device import Array, Device, Graph, bfloat16
from llama3.cuda.linear import bucket, linear
from llama3.cuda.quantised import GROUP, PER_PIECE, SCRATCH_ROWS, QuantisedArray, row_bytes
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import LayerWeights, Weights
from llama3.engine import Engine, Request
from llama3.model.batch import Batch
from llama3.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)
FULL = SamplingParams(  # every parameter set
    temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.1,
    presence_penalty=0.1, seed=1,
)  # fmt: skip


def array_of(tensor: torch.Tensor) -> Array:
    """The tensor's memory as a CuPy array. torch must have finished what it computes there."""
    import cupy

    return cupy.from_dlpack(tensor.detach())


def weights_of(model: Any) -> Weights:
    """The weights of gpu_fast.random_model, in the same memory."""
    layers = [
        LayerWeights(
            attention_norm=array_of(layer.input_layernorm.weight),
            wqkv=array_of(qkv),
            wo=array_of(layer.self_attn.o_proj.weight),
            ffn_norm=array_of(layer.post_attention_layernorm.weight),
            w13=array_of(gate_up),
            w2=array_of(layer.mlp.down_proj.weight),
        )
        for layer, (qkv, gate_up) in zip(model.model.layers, model.joined, strict=True)
    ]
    return Weights(
        tok_embeddings=array_of(model.model.embed_tokens.weight),
        layers=layers,
        norm=array_of(model.model.norm.weight),
        output=array_of(model.lm_head.weight),
    )


def quantised_weights(c: ModelConfig, model: Any, kind: str) -> Weights:
    """The embedding and the norms of `weights_of`, and matrices of random codes."""
    plain = weights_of(model)
    where, widest = model.lm_head.weight.device, max(c.dim, c.hidden_dim)
    scratch_memory = torch.empty(SCRATCH_ROWS * widest, dtype=torch.bfloat16, device=where)
    torch.cuda.synchronize()  # the two libraries use different streams
    scratch = array_of(scratch_memory)

    def matrix(n_out: int, width: int) -> QuantisedArray:
        shape = n_out, row_bytes(kind, width)
        rows = torch.randint(0, 256, shape, dtype=torch.uint8, device=where)
        scales = torch.from_numpy(scales_of(kind, width))
        rows[:, -len(scales) :] = scales.to(where)
        torch.cuda.synchronize()
        return QuantisedArray(kind, (n_out, width), array_of(rows), scratch)

    wqkv, wo, w13, w2, output = (lambda shape=shape: matrix(*shape) for shape in shapes(c).values())
    layers = [replace(layer, wqkv=wqkv(), wo=wo(), w13=w13(), w2=w2()) for layer in plain.layers]
    return replace(plain, layers=layers, output=output())


def scales_of(kind: str, width: int) -> np.ndarray:
    """The last bytes of a row (kernels/weights.cuh), with one scale for all, so that entries are about width^-0.5."""
    out = np.zeros(row_bytes(kind, width) - width * 16 // PER_PIECE[kind], np.uint8)
    size = width**-0.5 / {"Int8": 74, "Fp8": 150, "Int4": 4.6}[kind]
    if kind == "Int4":
        groups = np.zeros((width // GROUP, 2), np.uint16)
        groups[:, 0] = np.float16(64 * size).view(np.uint16)
        groups[:, 1] = np.array(-8 / 64, bfloat16).view(np.uint16)
        out[: groups.nbytes] = groups.view(np.uint8).ravel()
    else:
        out[:4] = np.array([size * (64 if kind == "Int8" else 1)], np.float32).view(np.uint8)
    return out


class Ours:
    def __init__(self, device: Device, c: ModelConfig, model: Any, kind: str | None = None):
        """kind: of the matrices, as in `QuantisedArray`; None: bf16, in the memory of the model's."""
        self.device, self.config = device, c
        self.torch_device = model.lm_head.weight.device
        torch.cuda.synchronize()
        weights = quantised_weights(c, model, kind) if kind else weights_of(model)
        self.transformer = Transformer(device, c, weights)
        device.sync()

    def decode(self, batch: int, context: int, params: SamplingParams = GREEDY) -> dict[str, Any]:
        """Milliseconds a step of the engine, which reads every token on the host, in each run.

        `busy` is the share of a step in which the GPU works: the time of its graph without the host, over the step's.
        A graph moves its positions on, so it begins where the middle of its replays is that of the steps.
        """
        c = self.config
        engine = Engine(self.transformer, batch, cache_length(context, c.max_seq_len))
        self.fill(engine, prompt_length(context, c.max_seq_len), decoded_tokens(), params)
        graphs: list[Graph] = []
        replay = self.device.replay

        def note_and_replay(graph: Graph) -> None:
            graphs[:] = [graph]
            replay(graph)

        with patch.object(self.device, "replay", note_and_replay):
            times = timed_delivery(lambda: sum(event.sample is not None for event in engine.step()), batch)
        positions = self.transformer._decodings[engine.cache]._activations.first(bucket(batch)).positions
        start = graph_position(context, c.max_seq_len)
        padded = [start] * batch + [-1] * (len(positions) - batch)
        self.device.upload(np.array(padded, np.int32), into=positions)
        alone = timed_graph(self.device.sync, lambda: replay(graphs[0]))
        return {"runs_ms": times, "graph_alone_ms": median(alone), "busy": median(alone) / median(times)}

    def fill(self, engine: Engine, length: int, max_tokens: int, params: SamplingParams) -> None:
        """Give each slot a request whose prompt is in the cache but for its last token; the cache is random numbers."""
        cache: Any = engine.cache
        for layer in range(self.config.n_layers):
            for array in (cache.k[layer], cache.v[layer]):
                random = torch.randn(array.shape, dtype=torch.bfloat16, device=self.torch_device)
                torch.cuda.synchronize()  # the two libraries use different streams
                self.device.copy(array_of(random), into=array)
                self.device.sync()
        rng = np.random.default_rng(len(cache.lengths))
        for slot in range(len(cache.lengths)):
            prompt = [slot, *rng.integers(0, self.config.vocab_size, length - 1).tolist()]  # all begin differently
            before = Request(prompt[:-1], params)
            before.finish_reason = "stop"
            engine.slot_requests[slot], cache.lengths[slot] = before, length - 1
            engine.submit(Request(prompt, params, max_tokens))

    def prefill(self, T: int, chunk: int = PREFILL_CHUNK_ALONE) -> list[float]:
        """Milliseconds for a prompt of T tokens, until the logits of its last token are in the host's memory.

        chunk: the rows of a step; by default those of the engine while no request decodes.
        """
        cache = self.transformer.new_cache(1, T)
        tokens = np.random.default_rng(T).integers(0, self.config.vocab_size, T).astype(np.int32)

        def run() -> None:
            cache.truncate(0, 0)
            for i in range(0, T, chunk):
                rows = np.array([len(tokens[i : i + chunk]) - 1]) if i + chunk >= T else np.array([], int)
                self.transformer.forward(Batch.of([(0, tokens[i : i + chunk])]), cache, rows)

        return timed(self.device.sync, run)

    def product(self, matrices: list[torch.Tensor]) -> list[float]:
        """Milliseconds of a matrix times one row; the matrices one after the other in a graph."""
        n_out, width = matrices[0].shape
        x = self.device.upload(np.random.default_rng(0).standard_normal((1, width), np.float32).astype(bfloat16))
        out = self.device.alloc((1, n_out), bfloat16)
        arrays = [array_of(matrix) for matrix in matrices]

        def launch() -> None:
            for array in arrays:
                linear(self.device, x, array, out)

        launch()
        with self.device.capture() as graph:
            launch()
        replay: Callable[[], Any] = lambda: [self.device.replay(graph) for _ in range(REPLAYS)]  # noqa: E731
        return timed(self.device.sync, replay, REPLAYS * len(matrices))

    def attention(self, T: int) -> list[float]:
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
