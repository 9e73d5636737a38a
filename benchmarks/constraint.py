"""What does structured output cost a decoding step, with Llama 3's 128,256 tokens?

    python benchmarks/constraint.py [--out FILE.json]        (needs the extra "test": the real vocabulary)

Each schema is walked at random, an allowed token after the other; timed is all that a step does for the mask: the
last token taken in, the mask computed, unpacked to one bool a token. Also: compiling a schema, the vocabulary's own
preparation, which is done once a model, and the memory that ten schemas take that are walked at the same time.
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
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def walk(constraint: Constraint, dice: np.random.Generator, stops: frozenset[int]) -> list[float]:
    """Milliseconds of each step."""
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
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()
    tokenizer, dice = Tokenizer.from_file(file()), np.random.default_rng(0)
    stops = tokenizer.stop_ids

    start = time.perf_counter()
    Constraint(tokenizer, schema_grammar({"type": "null"}), stops, VOCAB)
    prepared = time.perf_counter() - start
    print(f"the vocabulary is prepared once, in {prepared:.2f} s")
    rows, all_times = [], []
    for name, grammar in GRAMMARS.items():
        compiled, times = [], []
        for _ in range(10):
            start = time.perf_counter()
            constraint = Constraint(tokenizer, grammar(), stops, VOCAB)
            compiled.append((time.perf_counter() - start) * 1e3)
            times += walk(constraint, dice, stops)
        all_times += times
        p10, median, p90, p99 = np.quantile(times, [0.1, 0.5, 0.9, 0.99]).round(4).tolist()
        figures = {"p10": p10, "median": median, "p90": p90, "p99": p99, "worst": round(max(times), 4)}
        rows.append(
            {"grammar": name, "steps": len(times), "compile_ms": statistics.median(compiled), "step_ms": figures}
        )
        shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"{name:18} compiled in {statistics.median(compiled):6.2f} ms; a step, ms: {shown}", flush=True)

    before = resident()
    live = [Constraint(tokenizer, list(GRAMMARS.values())[i % len(GRAMMARS)](), stops, VOCAB) for i in range(LIVE)]
    for constraint in live:
        walk(constraint, dice, stops)
    memory = resident() - before
    median = statistics.median(all_times)
    print(f"over all: median {median:.3f} ms a step; {LIVE} live schemas take {memory / 1e6:.1f} MB")
    if arguments.out:
        about = about_this_run() | {"prepared_s": prepared, "median_ms": median, "ten_live_bytes": memory}
        arguments.out.write_text(json.dumps(about | {"grammars": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
