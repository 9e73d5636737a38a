"""Measure what structured output adds to a decoding step, with Llama 3's vocabulary of 128,256 tokens.

    python benchmarks/constraint.py [--out FILE.json]        (needs the extra "test": the real vocabulary)

For each grammar, random allowed tokens are chosen one after the other. The time of a step covers everything that the
mask needs: consuming the last token, computing the mask, and unpacking it to one bool per token. Also measured:
compiling a grammar, preparing the vocabulary, which is done once per model, and the memory of ten grammars in use at
once.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from machine import about_this_run  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.constraint import Constraint, schema_grammar, tools_grammar
from llama3.tokenizer import Tokenizer
from tests.real_vocabulary import file

VOCAB, STEPS, LIVE = 128_256, 200, 10
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 5},
    },
    "required": ["name", "age", "mail", "tags"],
    "additionalProperties": False,
}
CITY = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
GRAMMARS = {
    "any object": lambda: schema_grammar({"type": "object"}),
    "a person": lambda: schema_grammar(PERSON),
    "a list of persons": lambda: schema_grammar({"type": "array", "items": PERSON, "minItems": 20}),
    "a pattern": lambda: schema_grammar({"type": "string", "pattern": "^([A-Z][a-z]{2,9} ){20,60}$"}),
    "text or a call": lambda: tools_grammar([CITY]),
}


def resident() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def generate(constraint: Constraint, dice: np.random.Generator, stops: frozenset[int]) -> list[float]:
    """Generate up to STEPS random allowed tokens -> the milliseconds of each step's mask."""
    tokens: list[int] = []
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        allowed = constraint.allowed(tokens)
        times.append((time.perf_counter() - start) * 1e3)
        ids = np.flatnonzero(allowed)
        token = int(ids[dice.integers(len(ids))])
        if token in stops:
            break
        tokens.append(token)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results to this file, as JSON")
    arguments = parser.parse_args()
    tokenizer, dice = Tokenizer.from_file(file()), np.random.default_rng(0)
    stops = tokenizer.stop_ids

    start = time.perf_counter()
    Constraint(tokenizer, schema_grammar({"type": "null"}), stops, VOCAB)
    prepared = time.perf_counter() - start
    print(f"the vocabulary is prepared once per model: {prepared:.2f} s")
    rows, all_times = [], []
    for name, grammar in GRAMMARS.items():
        compiled, times = [], []
        for _ in range(10):
            start = time.perf_counter()
            constraint = Constraint(tokenizer, grammar(), stops, VOCAB)
            compiled.append((time.perf_counter() - start) * 1e3)
            times += generate(constraint, dice, stops)
        all_times += times
        p10, median, p90, p99 = np.quantile(times, [0.1, 0.5, 0.9, 0.99]).round(4).tolist()
        step_ms = {"p10": p10, "median": median, "p90": p90, "p99": p99, "worst": round(max(times), 4)}
        rows.append(
            {"grammar": name, "steps": len(times), "compile_ms": statistics.median(compiled), "step_ms": step_ms}
        )
        shown = ", ".join(f"{key} {value:.3f}" for key, value in step_ms.items())
        print(f"{name:18} compiled in {statistics.median(compiled):6.2f} ms; ms per step: {shown}", flush=True)

    before = resident()
    live = [Constraint(tokenizer, list(GRAMMARS.values())[i % len(GRAMMARS)](), stops, VOCAB) for i in range(LIVE)]
    for constraint in live:
        generate(constraint, dice, stops)
    memory = resident() - before
    median = statistics.median(all_times)
    print(f"over all grammars: median {median:.3f} ms per step; {LIVE} grammars in use take {memory / 1e6:.1f} MB")
    if arguments.out:
        about = about_this_run() | {"prepared_s": prepared, "median_ms": median, "ten_live_bytes": memory}
        arguments.out.write_text(json.dumps(about | {"grammars": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
