"""What weights in 8 and 4 bits gain on the CPU: decoding by NumPy and by numba, each beside bfloat16 on the same path.

    python benchmarks/quantised.py [--model BF16 INT8 INT4] [--out FILE.json]       (needs the extra "numba")

Without --model: four layers of the 8B's shapes with random weights, in 5 GB of memory, in one process. One row of x and
four rows; int8 with a scale for each row, int4 with one for each 128 columns, as `llama3 quantize` writes them. The
output matrix, which stays bfloat16, is measured apart, so that the whole 8B's ratio can be computed from both.

With --model, also three folders with the same model: `make_checkpoint.py`'s and what `llama3 quantize` makes of it.
Each measurement is a process of its own. Tokens a second with a cache that holds 2,040 random positions, in three
turns; and the peak of memory, there and after a prompt that fills a context of 2,048. It needs 20 GB of memory that
nothing else uses, and on two cores 45 minutes.

All sides take turns, and a ratio is the median of the turns' ratios. FILE.json is written after each measurement. If it
exists, the run goes on with what is missing in it.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import full_8b  # the files beside this one
import ml_dtypes
import numpy as np
import random_8b
from machine import about_this_run
from random_8b import random_weights

from llama3.config import ModelConfig
from llama3.cpu_model import CpuModel
from llama3.model.batch import Batch
from llama3.model.linear import linear
from llama3.model.linear_choice import NAMES, choose_linear
from llama3.model.quantised import QuantisedMatrix
from llama3.model.weights import Weights

PATHS = ("numpy", "numba")
KINDS = ("bf16", "int8", "int4")
ROWS = (1, 4)
CACHED = 128  # positions of each sequence, where four layers are measured
LAYERS = 32  # of the 8B
TURNS = 3  # of the whole models
CONTEXT, TOKENS = 2048, 8  # of the whole models
RATE = "decode_tokens_per_s"  # the first decoded token is not in it
SPEED = {("numpy", "int8"): 1.3, ("numpy", "int4"): 1.2, ("numba", "int8"): 1.6, ("numba", "int4"): 1.2}  # times bf16
MEMORY = {"int8": 9.6, "int4": 6.3}  # GB
Report = dict[str, Any]


# ---- four layers


def quantised(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> QuantisedMatrix:
    """Random codes in the layout that `llama3 quantize` writes, with entries about as large as `random_weights`'."""
    n_out, n_in = shape
    codes = rng.integers(0, 256, (n_out, n_in * bits // 8), np.uint8)
    width = n_in if bits == 8 else 128
    scale = np.full((n_out, n_in // width), 0.02 / 2 ** (bits - 1), ml_dtypes.bfloat16)
    return QuantisedMatrix(shape, bits, codes, (1, width), scale, 2 ** (bits - 1))


def kinds_of_weights(c: ModelConfig) -> dict[str, Weights]:
    """The layers in bfloat16, int8 and int4. Embedding and output matrix are the same for all."""
    bf16, rng = random_weights(c), np.random.default_rng(1)
    bf16 = replace(bf16, tok_embeddings=bf16.output)  # 1 GB less; decoding reads a row of it
    found = {"bf16": bf16}
    for bits in (8, 4):
        layers = [
            replace(layer, **{name: quantised(rng, getattr(layer, name).shape, bits) for name in NAMES})
            for layer in bf16.layers
        ]
        found[f"int{bits}"] = replace(bf16, layers=layers)
    return found


class Decoder:
    """A model with caches that are filled, and a token for each of its sequences."""

    def __init__(self, c: ModelConfig, weights: Weights, path: str, rows: int):
        self.model = CpuModel(c, weights, linear=choose_linear(weights, path))
        self.cache = self.model.new_cache(rows, CACHED + 1)
        rng = np.random.default_rng(rows)
        for slot in range(rows):
            shape = (c.n_layers, c.n_kv_heads, CACHED, c.head_dim)
            self.cache.restore(slot, *(rng.standard_normal(shape, np.float32) for _ in "kv"))
        tokens = rng.integers(0, c.vocab_size, rows).tolist()
        self.batch = Batch.of([(slot, [token]) for slot, token in enumerate(tokens)])
        self.x = rng.standard_normal((rows, c.dim), np.float32)

    def step(self, logits: int = 0) -> np.ndarray:
        """All layers, and the output matrix for that many rows. The cache is then as it was before."""
        out = self.model.forward(self.batch, self.cache, np.arange(logits))
        for slot in self.batch.slots:
            self.cache.truncate(slot, CACHED)
        return out

    def output(self) -> np.ndarray:
        return linear(self.x, self.model.weights.output)


def four_layers(c: ModelConfig, turns: int) -> dict[str, Report]:
    """Seconds of each turn, by rows, and by path and kind: of the layers, or "output": of the output matrix alone."""
    weights, found = kinds_of_weights(c), {}
    for rows in ROWS:
        work: dict[str, Callable[[], np.ndarray]] = {}
        logits: dict[tuple[str, str], np.ndarray] = {}
        for path in PATHS:
            for kind in KINDS:
                decoder = Decoder(c, weights[kind], path, rows)
                logits[path, kind] = decoder.step(logits=rows)  # also warms up
                work[f"{path} {kind}"] = decoder.step
            work[f"{path} output"] = decoder.output
        for kind in KINDS:
            error = full_8b.nmse(*(logits[path, kind].ravel().tolist() for path in PATHS))
            assert error < 1e-8, f"numpy and numba differ in {kind}: nmse {error}"
        seconds: Report = {name: [] for name in work}
        for _ in range(turns):
            for name, call in work.items():
                begin = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - begin)
        found[str(rows)] = seconds
    return found


# ---- whole models


def jobs() -> dict[str, tuple[str, str, str]]:
    """Name -> the model, the path, and what full_8b.py's worker is told."""
    decode = f"filled,{CONTEXT - TOKENS},{TOKENS}"
    each = list(itertools.product(KINDS, PATHS))
    found = {f"{path} {kind} {turn}": (kind, path, decode) for turn in range(1, TURNS + 1) for kind, path in each}
    prompt = f"ours,{CONTEXT - 1},1"
    return found | {f"numba {kind}, prompt": (kind, "numba", prompt) for kind in KINDS}


def whole_models(folders: dict[str, Path], report: Report, save: Callable[[], None]) -> bool:
    """Add what is missing in the report; -> whether all is there."""
    measured, complete = report["measured"], True
    for name, (kind, path, job) in jobs().items():
        if name in measured:
            continue
        print(f"{name} ...", end=" ", flush=True)
        try:
            measured[name] = full_8b.measure(job, argparse.Namespace(checkpoint=folders[kind], linear=path))
        except RuntimeError as error:
            complete = False
            print(error)
            continue
        print(", ".join(f"{key} {value:.2f}" for key, value in measured[name].items() if isinstance(value, float)))
        save()
    return complete


# ---- the figures


def ratio(times: list[float], beside: list[float]) -> float:
    """How many times as fast, in the median of the turns."""
    return statistics.median(b / a for a, b in zip(times, beside))


def rows_of_layers(report: Report) -> list[tuple[str, str, str]]:
    """(what, figure, bar) of each row. The 8B's time is computed: that of its 32 layers and of the output matrix."""
    shown = []
    for rows, path, kind in itertools.product(ROWS, PATHS, KINDS):
        seconds = report["seconds"][str(rows)]
        layers, bf16, output = (np.array(seconds[f"{path} {name}"]) for name in (kind, "bf16", "output"))
        whole, whole_bf16 = (LAYERS / report["n_layers"] * a + output for a in (layers, bf16))
        figure = (
            f"{1e3 * np.median(layers):8.1f} ms {ratio(layers, bf16):5.2f} x   8B: {ratio(whole, whole_bf16):.2f} x"
        )
        bar = SPEED.get((path, kind)) if rows == 1 else None
        shown.append((f"{rows} row{'s' * (rows > 1)}, {path} {kind}", figure, f"8B: >= {bar} x" if bar else ""))
    return shown


def rows_of_models(measured: dict[str, Report]) -> list[tuple[str, str, str]]:
    shown = []
    for path, kind in itertools.product(PATHS, KINDS):
        names = [(f"{path} {kind} {turn}", f"{path} bf16 {turn}") for turn in range(1, TURNS + 1)]
        pairs = [[1 / measured[name][RATE] for name in pair] for pair in names if measured.keys() >= set(pair)]
        figure, bar = "not measured", SPEED.get((path, kind))
        if pairs:
            times, bf16 = map(list, zip(*pairs))
            figure = f"{1 / statistics.median(times):8.2f} tokens/s {ratio(times, bf16):5.2f} x"
        shown.append((f"whole model, {path} {kind}", figure, f">= {bar} x" if bar else ""))
    for kind in KINDS:
        peaks = [found["peak_gb"] for name, found in measured.items() if kind in name]
        figure = f"{max(peaks):8.2f} GB" if peaks else "not measured"
        shown.append((f"peak of memory, {kind}", figure, f"<= {MEMORY[kind]} GB" if kind in MEMORY else ""))
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs=3, metavar=("BF16", "INT8", "INT4"))
    parser.add_argument("--out", type=Path, help="the measurements as JSON")
    parser.add_argument("--turns", type=int, default=9, help=f"with four layers; whole models have {TURNS}")
    args = parser.parse_args(argv)
    try:
        report = full_8b.report_of(args.out, about_this_run(), ("commit", "machine"))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    save = partial(full_8b.write, args.out, report) if args.out else lambda: None
    config = random_8b.CONFIG
    if "seconds" not in report:
        report |= {"n_layers": config.n_layers, "seconds": four_layers(config, args.turns)}
        save()
    shown, complete = rows_of_layers(report), True
    if args.model:
        complete = whole_models(dict(zip(KINDS, args.model)), report, save)
        shown += rows_of_models(report["measured"])
    for what, figure, bar in shown:
        print(f"{what:28}{figure:>36}   {bar}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
