"""How long does one token take to choose from Llama 3's 128,256 logits, on one thread?

    python benchmarks/sampler.py [--out FILE.json]

Prints milliseconds of wall time and of processor time: on a busy machine only the latter says what the sampler costs.
Flat logits are normal with a deviation of 3; peaked ones, nearer to a language model's, have a deviation of 2.5 and
20 tokens raised by 12. "allowed" is the share of tokens that a mask allows. A request without a temperature has 0.6.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from machine import about_this_run  # the file beside this one

from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams

VOCAB = 128_256
PROMPT = 1000
OPTIONS: list[dict] = [
    {"temperature": 0},
    {},
    {"temperature": 1},
    {"temperature": 5},
    {"temperature": 0.01},
    {"min_p": 0.05},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 50_000},
    {"repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    {"top_p": 0.9},
    {"temperature": 1, "top_p": 0.95},
    {"temperature": 5, "top_p": 0.95},
    {"temperature": 0.01, "top_p": 0.95},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
    {"top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    {"temperature": 1, "allowed": 0.001},
    {"temperature": 1, "allowed": 0.5},
    {"temperature": 1, "allowed": 0.999},
    {"top_p": 0.9, "allowed": 0.999},
    {"temperature": 0, "logprobs": 20},
    {"logprobs": 20},
]


def logits_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    logits = rng.standard_normal(VOCAB).astype(np.float32) * (3 if kind == "flat" else 2.5)
    if kind == "peaked":
        logits[rng.choice(VOCAB, 20, replace=False)] += 12
    return logits


def measure(options: dict, kind: str, repeats: int) -> dict:
    rng = np.random.default_rng(0)
    params = SamplingParams(seed=1, **{name: value for name, value in options.items() if name != "allowed"})
    mask = rng.random(VOCAB) < options["allowed"] if "allowed" in options else None
    sampler = SequenceSampler(params, rng.integers(0, VOCAB, PROMPT).tolist(), VOCAB, lambda: mask)
    logits = logits_of(kind, rng)
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.thread_time()
        token = sampler.sample(logits).token
        cpu.append((time.thread_time() - cpu_start) * 1e3)
        wall.append((time.perf_counter() - wall_start) * 1e3)
        sampler.accept(token)
    return {"logits": kind, "options": options, "wall_ms": quantiles(wall), "cpu_ms": quantiles(cpu)}


def quantiles(values: list[float]) -> dict[str, float]:
    p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": round(p10, 4), "median": round(median, 4), "p90": round(p90, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    results: list[dict] = []
    print(f"{'ms a token: p10, median, p90':66}{'wall':^24}{'processor':^24}")
    for kind in ("flat", "peaked"):
        for options in OPTIONS:
            result = measure(options, kind, arguments.repeats)
            results.append(result)
            wall, cpu = ("".join(f"{ms:8.3f}" for ms in result[clock].values()) for clock in ("wall_ms", "cpu_ms"))
            name = ", ".join(f"{name} {value}" for name, value in options.items()) or "(defaults)"
            print(f"{kind:8}{name[:57]:58}{wall}{cpu}", flush=True)
    if arguments.out:
        result = about_this_run() | {"vocab_size": VOCAB, "results": results}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
