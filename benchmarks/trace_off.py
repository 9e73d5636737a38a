"""What does tracing cost whoever does not ask for it? The forward pass beside one without any line of tracing.

    python benchmarks/trace_off.py [--pairs 200] [--out FILE.json]

The other forward pass is made from the source of `Transformer.forward` and `feed_forward`: statements that test `trace`
or `see`, and these arguments, are left out. Two answers, for the demo and for two layers of the 8B's shapes (with a
vocabulary of 1,024), for 1, 16 and 512 rows:
- both passes in turn, in changing order: the median of the ratios of a pair, with a bootstrap interval of 95 %;
- the instructions of Python that only the real pass executes, and how long so many take, measured alone. This bound
  does not depend on what else the machine does.
"""

import argparse
import ast
import inspect
import json
import random
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import random_8b
from machine import about_this_run

from llama3 import Llama
from llama3.config import ModelConfig
from llama3.model import feed_forward, transformer
from llama3.model.batch import Batch
from llama3.model.transformer import Transformer
from llama3.model.weights import Weights

NAMES = {"trace", "see"}
ROWS = (1, 16, 512)
MOST_SECONDS = 60.0  # of the pairs of one size


class WithoutTracing(ast.NodeTransformer):
    """Leaves out what tests, sets or passes one of NAMES."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id in NAMES else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        named = isinstance(node.targets[0], ast.Name) and node.targets[0].id in NAMES
        return None if named else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [arg for arg in node.args if not (isinstance(arg, ast.Name) and arg.id in NAMES)]
        return self.generic_visit(node)


def stripped(function: Callable[..., Any], namespace: dict[str, Any]) -> Callable[..., Any]:
    """The function without tracing, compiled in another namespace."""
    tree = WithoutTracing().visit(ast.parse(textwrap.dedent(inspect.getsource(function))))
    exec(compile(ast.fix_missing_locations(tree), "without tracing", "exec"), namespace)
    return namespace[function.__name__]


def forward_without_tracing() -> Callable[..., np.ndarray]:
    """`Transformer.forward` without tracing; its first argument is the model."""
    inner = stripped(feed_forward.feed_forward, dict(vars(feed_forward)))
    return stripped(Transformer.forward, vars(transformer) | {"feed_forward": inner})


def instructions(run: Callable[[], Any], functions: set[str]) -> int:
    """How many instructions of Python the functions of these names execute while `run` runs."""
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return local

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_name not in functions:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def seconds_of_one() -> float:
    """Of one such instruction: `if see:` and `if trace:` are two each, a load of a local variable and a jump."""
    checks = 1000
    body = "\n".join(["    if see: pass"] * checks)
    empty, full = "def f(see):\n    pass", f"def f(see):\n{body}"
    took = {}
    for source in (empty, full):
        space: dict[str, Any] = {}
        exec(source, space)
        took[source] = min(_seconds(lambda f=space["f"]: f(None)) for _ in range(200))
    return (took[full] - took[empty]) / (2 * checks)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(config: ModelConfig, weights: Weights, rows: int, pairs: int) -> dict[str, Any]:
    """Both passes over `rows` tokens of a new sequence; for one row, after 16 others."""
    model, other = Transformer(config, weights), forward_without_tracing()
    rng = random.Random(0)
    tokens = [rng.randrange(config.vocab_size) for _ in range(16 + rows)]
    start = 16 if rows == 1 else 0
    cache = model.new_cache(1, len(tokens))
    if start:
        model.forward(Batch.of([(0, tokens[:start])]), cache, np.arange(0))
    batch, last = Batch.of([(0, tokens[start : start + rows])]), np.array([rows - 1])

    def real() -> np.ndarray:
        cache.truncate(0, start)
        return model.forward(batch, cache, last)

    def bare() -> np.ndarray:
        cache.truncate(0, start)
        return other(model, batch, cache, last)

    assert np.array_equal(real(), bare())
    extra = sum(sign * instructions(run, {"forward", "feed_forward"}) for sign, run in ((1, real), (-1, bare)))
    ratios, times, begin = [], [], time.perf_counter()
    while len(ratios) < pairs and (len(ratios) < 10 or time.perf_counter() - begin < MOST_SECONDS):
        took = {run: _seconds(run) for run in rng.sample([real, bare], 2)}
        ratios.append(took[real] / took[bare])
        times.append(took[bare])
    resampled = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "pairs": len(ratios),
        "forward_ms": statistics.median(times) * 1e3,
        "ratio": statistics.median(ratios),
        "ratio_95": [resampled[50], resampled[-51]],
        "extra_instructions": extra,
        "extra_share": extra * seconds_of_one() / min(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    demo = Llama.load(linear="numpy").checkpoint
    big = replace(random_8b.CONFIG, n_layers=2, vocab_size=1024, max_seq_len=2048)
    found: dict[str, Any] = {}
    for name, config, weights in (("demo", demo.config, demo.weights), ("8b", big, random_8b.random_weights(big))):
        for rows in ROWS:
            found[f"{name}_{rows}"] = measure(config, weights, rows, args.pairs)
            print(name, rows, json.dumps(found[f"{name}_{rows}"]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
