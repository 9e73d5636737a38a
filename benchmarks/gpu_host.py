"""How long does Python work on a decoding step of the GPU path? Measured without a GPU, on a device that does nothing.

    python benchmarks/gpu_host.py [--out FILE.json] [--quick]

A step is a call of `Engine.step`. It is one of two kinds:
  ahead    it replays a graph before the last step's tokens are read: the usual step. The GPU is busy meanwhile.
  waiting  it begins with the tokens that the host has: the first step after a request has come or gone, and every step
           beside a request whose tokens a grammar restricts. The GPU waits for the host.
"model" is the part of a step ahead that is not the engine's: the replay, and the samples from their bytes.
Times are CPU time of the thread, medians of rounds in which all rows take turns. Not included: what CuPy and the driver
take for a replay and for the copy of the results, which only a GPU can tell.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import about_this_run  # the files beside this one
from null_device import NullDevice, empty_model, launches

from llama3.config import ModelConfig
from llama3.engine import Engine
from llama3.request import Request
from llama3.sampling_params import SamplingParams
from llama3.step_ahead import Running

CONFIG = ModelConfig(64, 32, 1, 1, 64, 64, 512, max_seq_len=8192)  # the depth of the 8B: the host's work has its size
KINDS = {
    "greedy": SamplingParams(temperature=0),
    "full": SamplingParams(  # every parameter set
        temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.1,
        presence_penalty=0.1, seed=1,
    ),
    "log-probabilities": SamplingParams(temperature=0, logprobs=5),
}  # fmt: skip
STEPS = 40  # of a row in a round


class WaitingEngine(Engine):
    def _begin_next(self, running: Running) -> None:
        return None


def running_engine(kind: type[Engine], model: Any, n: int, params: SamplingParams, tokens: int) -> Engine:
    """An engine in which n requests decode, and go on for at least so many tokens."""
    engine = kind(model, n, tokens + 64)
    for i in range(n):
        engine.submit(Request([i, 1, 2], params, tokens + 32))
    for _ in range(16):
        engine.step()
    return engine


def model_steps(engine: Engine) -> Callable[[], None]:
    """A step without the engine: the next replay, then the samples of the last one."""
    running = engine._ahead
    assert running
    pending: Any = running.pending

    def step() -> None:
        nonlocal pending
        following = pending.launch_next()
        pending.samples()
        pending = following

    return step


def rows(rounds: int) -> list[dict[str, Any]]:
    model, tokens = empty_model(NullDevice(), CONFIG), (rounds + 1) * STEPS
    steps: dict[tuple[str, int, str], Callable[[], Any]] = {}
    for name, params in KINDS.items():
        for n in (1, 8, 64):
            for what, kind in (("ahead", Engine), ("waiting", WaitingEngine)):
                steps[name, n, what] = running_engine(kind, model, n, params, tokens).step
            steps[name, n, "model"] = model_steps(running_engine(Engine, model, n, params, tokens))
    found: dict[tuple[str, int, str], list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            start = time.thread_time()
            for _ in range(STEPS):
                step()
            found[key].append((time.thread_time() - start) / STEPS * 1e6)
    return [
        {"sampling": name, "requests": n, "step": what, "us": statistics.median(times), "fastest_us": min(times)}
        for (name, n, what), times in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 25")
    args = parser.parse_args()
    report = about_this_run() | {"config": vars(CONFIG) | {"rope_scaling": None}, "rows": rows(3 if args.quick else 25)}
    report["launches"] = {f"{name}, {n}": launches(CONFIG, n, p) for name, p in KINDS.items() for n in (1, 8, 64)}
    for row in report["rows"]:
        print(f"{row['sampling']:18} {row['requests']:3} requests  {row['step']:8} {row['us']:8.1f} us a step")
    for name, n in report["launches"].items():
        print(f"{name:22} {n} launches a step")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
