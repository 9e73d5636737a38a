"""Speed on the CPU, with four layers of the 8B's shapes: our kinds of product, transformers and llama.cpp in one run.

    python benchmarks/cpu.py [--out FILE.json]        (needs the extras "oracle" and "numba", and 16 GB of memory)

- decoding with 1, 4, 8 and 16 sequences that have 128 tokens in their caches;
- prompts of 64, 128, 512 and 2,048 tokens, and NumPy's float32 products of the layers' matrices alone.

The sides take turns, so that other work on the machine affects all of them. A ratio is the median of the turns' ratios
to transformers in bfloat16, on the same weights. Sides that this machine lacks are written as not measured: AMX without
such a CPU, and llama.cpp unless llama-cpp-python (built from source) and gguf are installed. Logits of every side are
compared with NumPy's first: "nmse" is their normalised mean square error.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cpu_sides import THREADS, LlamaCpp, Ours, Side, Transformers  # the files beside this one
from machine import about_this_run
from random_8b import CONFIG, projections, random_weights
from threadpoolctl import threadpool_info, threadpool_limits

from llama3.errors import DeviceError
from llama3.model.weights import Weights

CONTEXT = 128  # tokens in the cache of each sequence that decodes
ROWS = (1, 4, 8, 16)
PROMPTS = (64, 128, 512, 2048)
REFERENCE = "transformers bf16"
NUMPY_PRODUCTS = "NumPy float32 products alone"
TOLERANCE = {"bf16": 1e-2, "1 part": 1e-2}  # of the nmse, by a word in the side's name; the others compute in float32


def all_sides(weights: Weights, without: list[str]) -> tuple[dict[str, Side], dict[str, str]]:
    """-> (the sides by name, why the others are not measured)."""
    makers: dict[str, Callable[[], Side]] = {
        "numpy": lambda: Ours(weights, "numpy"),
        "numba": lambda: Ours(weights, "numba"),
        "amx, 3 parts": lambda: Ours(weights, "amx"),
        "amx, 1 part": lambda: Ours(weights, "amx", "bfloat16"),
        REFERENCE: lambda: Transformers(weights, "bfloat16"),
        "transformers float32": lambda: Transformers(weights, "float32"),
        "llama.cpp bf16": lambda: LlamaCpp(weights, max(PROMPTS) + 1),
    }
    sides: dict[str, Side] = {}
    absent = {}
    for name, make in makers.items():
        try:
            if name in without:
                raise DeviceError("left out by --without")
            sides[name] = make()
        except (DeviceError, ModuleNotFoundError) as error:
            absent[name] = str(error)
    return sides, absent


def take_turns(work: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other in every turn."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def figures(times: dict[str, list[float]], first: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Seconds, ratios to transformers in bfloat16, and errors against NumPy's logits, where there are logits."""
    found = {}
    for name, seconds in times.items():
        found[name] = {"seconds": seconds, "median": statistics.median(seconds)}
        if REFERENCE in times:
            found[name]["ratio"] = statistics.median(b / a for a, b in zip(seconds, times[REFERENCE]))
        if name in first:
            found[name]["nmse"] = nmse(first[name], first["numpy"])
            limit = next((value for word, value in TOLERANCE.items() if word in name), 1e-8)
            assert found[name]["nmse"] <= limit, f"{name} does not compute the same: nmse {found[name]['nmse']}"
    return found


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a - b) ** 2) / np.sum(b**2))


def decoding(sides: dict[str, Side], rows: int, turns: int) -> dict[str, dict[str, Any]]:
    c, rng = CONFIG, np.random.default_rng(rows)
    shape = (rows, c.n_layers, c.n_kv_heads, CONTEXT, c.head_dim)
    k, v = (rng.standard_normal(shape, dtype=np.float32) * scale for scale in (0.5, 0.1))
    tokens = rng.integers(0, c.vocab_size, rows).tolist()
    work, first = {}, {}
    for name, side in sides.items():
        try:
            side.start_decoding(k, v)
        except NotImplementedError:
            continue
        logits = side.decode(tokens)  # warms up
        if not isinstance(side, LlamaCpp):
            first[name] = logits
        work[name] = lambda side=side: side.decode(tokens)
    return figures(take_turns(work, turns), first)


def prompts(sides: dict[str, Side], weights: Weights, n: int, turns: int) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, CONFIG.vocab_size, n).tolist()
    float32 = [w.astype(np.float32) for w in projections(weights.layers[0])]
    inputs = {size: rng.standard_normal((n, size), dtype=np.float32) for size in (CONFIG.dim, CONFIG.hidden_dim)}

    def numpy_products() -> None:
        for _ in range(CONFIG.n_layers):
            for w in float32:
                inputs[w.shape[1]] @ w.T

    first = {name: side.prompt(tokens) for name, side in sides.items()}
    work: dict[str, Callable[[], Any]] = {name: lambda s=side: s.prompt(tokens) for name, side in sides.items()}
    return figures(take_turns({**work, NUMPY_PRODUCTS: numpy_products}, turns), first)


def show(title: str, found: dict[str, dict[str, Any]], tokens: int) -> None:
    print(title)
    for name, figure in found.items():
        ratio = f"{figure['ratio']:6.2f} x {REFERENCE}" if "ratio" in figure else ""
        error = f"   nmse {figure['nmse']:.0e}" if "nmse" in figure else ""
        print(f"  {name:30}{figure['median'] * 1000:9.0f} ms {tokens / figure['median']:9.2f} tokens/s {ratio}{error}")
    print(flush=True)


def save(results: dict[str, Any], out: Path | None) -> None:
    """After each measurement, so that a run which is stopped keeps what it has."""
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="for decoding; a prompt takes a third of them")
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="do not measure this side")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--prompts", type=int, nargs="*", default=PROMPTS)
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()

    results: dict[str, Any] = about_this_run()
    for name in ("torch", "transformers", "numba", "llama-cpp-python"):
        try:
            results[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            results[name] = None
    results["blas"] = [(b["internal_api"], b["version"], b.get("architecture")) for b in threadpool_info()]
    results["threads"] = THREADS
    print(*(f"{name}: {value}" for name, value in results.items()), sep="\n", end="\n\n", flush=True)

    weights = random_weights()
    sides, results["not measured"] = all_sides(weights, arguments.without)
    for name, why in results["not measured"].items():
        print(f"not measured: {name}: {why}")
    results["decode"], results["prompt"] = {}, {}
    with threadpool_limits(THREADS, user_api="blas"):
        for rows in arguments.rows:
            results["decode"][rows] = decoding(sides, rows, arguments.turns)
            show(f"decoding {rows} sequence{'s' * (rows > 1)}", results["decode"][rows], rows)
            save(results, arguments.out)
        for n in arguments.prompts:
            results["prompt"][n] = prompts(sides, weights, n, max(1, arguments.turns // 3))
            show(f"a prompt of {n}", results["prompt"][n], n)
            save(results, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
