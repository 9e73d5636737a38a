"""Time and bytes of each operation of a step that computes one token, beside the least time that the bytes allow."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.model.transformer import Transformer
from llama3.model.weights import Weights

ENDS = {"attention": "attention", "feed_forward": "feed-forward"}  # name after "layers.{i}." -> operation
READ = 1 << 28  # bytes: a larger array is read no faster
TURNS = 3


@dataclass(frozen=True)
class Operation:
    """All layers together."""

    name: str
    seconds: float
    bytes: int  # of weights, keys and values that it reads
    floor: float  # seconds: the bytes at the rate at which this machine reads an array of the model's size


def measure(model: Transformer, weights: Weights, tokens: list[int]) -> list[Operation]:
    """Compute the last of `tokens` with the keys and values of the others in the cache; the best of three times.

    model: a `CpuModel`; weights: the checkpoint's.
    """
    cache = model.new_cache(1, len(tokens) + TURNS)
    if len(tokens) > 1:
        model.forward(Batch.of([(0, tokens[:-1])], [None]), cache, np.arange(0))
    turns = [_one_turn(model, cache, tokens[-1]) for _ in range(TURNS)]
    best = {name: min(turn[name] for turn in turns) for name in turns[0]}
    config = model.config
    pairs = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 4 * len(tokens)  # bytes of keys and values
    layers = weights.layers
    read = {
        "attention": pairs + sum(w.nbytes for i in layers for w in (i.wq, i.wk, i.wv, i.wo, i.attention_norm)),
        "feed-forward": sum(w.nbytes for i in layers for w in (i.w1, i.w2, i.w3, i.ffn_norm)),
        "output matrix": weights.output.nbytes + weights.norm.nbytes,
    }
    rate = read_rate(sum(read.values()))
    return [Operation(name, best[name], size, size / rate) for name, size in read.items()]


def _one_turn(model: Transformer, cache: KVCache, token: int) -> dict[str, float]:
    """Seconds by operation in one step."""
    spent = dict.fromkeys((*ENDS.values(), "output matrix"), 0.0)
    last = perf_counter()

    def trace(name: str, value: object) -> None:
        nonlocal last
        operation = ENDS.get(name.split(".", 2)[-1]) if name.startswith("layers.") else None
        if operation:
            now = perf_counter()
            spent[operation] += now - last
            last = now

    model.forward(Batch.of([(0, [token])], [None]), cache, np.arange(1), trace)
    spent["output matrix"] += perf_counter() - last
    return spent


def read_rate(size: int) -> float:
    """Bytes a second at which this machine reads an array of `size` bytes: from its caches if it fits into them."""
    array = np.ones(max(min(size, READ) // 4, 1), np.float32)
    times = []
    for _ in range(2 * TURNS):
        start = perf_counter()
        np.dot(array, array)
        times.append(perf_counter() - start)
    return array.nbytes / max(min(times), 1e-9)
