"""What does a LoRA adapter cost a decoding step on the CPU? Rank 16 on every matrix of four layers of the 8B's shapes.

    python benchmarks/lora.py [--out FILE.json]

Random bfloat16 weights and one row a step, alternately with and without the adapter, so that other work on the machine
slows both.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from machine import about_this_run  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.config import ModelConfig
from llama3.model.batch import Batch
from llama3.model.lora import LoraPair
from llama3.model.transformer import Transformer
from llama3.model.weights import LayerWeights, Weights

CONFIG = ModelConfig(4096, 4, 32, 8, 128, 14336, 1024)  # 4 layers; no adapter on the output matrix
RANK, CONTEXT, PAIRS = 16, 128, 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    c, dice = CONFIG, np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (dice.standard_normal(shape, np.float32) / np.sqrt(shape[-1])).astype(ml_dtypes.bfloat16)

    shapes = {"wq": (c.dim, c.dim), "wk": (1024, c.dim), "wv": (1024, c.dim), "wo": (c.dim, c.dim)}
    shapes |= {"w1": (c.hidden_dim, c.dim), "w2": (c.dim, c.hidden_dim), "w3": (c.hidden_dim, c.dim)}
    ones = np.ones(c.dim, np.float32)
    layers = [
        LayerWeights(attention_norm=ones, ffn_norm=ones, **{name: matrix(*shape) for name, shape in shapes.items()})
        for _ in range(c.n_layers)
    ]
    adapter = [
        {
            name: LoraPair(matrix(RANK, width).astype(np.float32), matrix(out, RANK).astype(np.float32))
            for name, (out, width) in shapes.items()
        }
        for _ in range(c.n_layers)
    ]
    embeddings = matrix(c.vocab_size, c.dim)
    model = Transformer(c, Weights(embeddings, layers, ones, embeddings), {"x": adapter})
    cache = model.new_cache(1, CONTEXT + 1)
    model.forward(Batch.of([(0, list(range(CONTEXT)))]), cache, np.arange(0))

    times: dict[str | None, list[float]] = {None: [], "x": []}
    for pair in range(PAIRS + 2):
        for name in times if pair % 2 else reversed(times):
            cache.truncate(0, CONTEXT)
            start = time.perf_counter()
            model.forward(Batch.of([(0, [7])], [name]), cache, np.arange(1))
            times[name].append(1e3 * (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(times["x"][2:], times[None][2:])]
    result = {
        **about_this_run(),
        "rank": RANK,
        "layers": c.n_layers,
        "plain_ms": statistics.median(times[None][2:]),
        "adapter_ms": statistics.median(times["x"][2:]),
        "ratio_median": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }
    print(f"{result['plain_ms']:.1f} ms, with an adapter {result['adapter_ms']:.1f}: x {result['ratio_median']:.3f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
