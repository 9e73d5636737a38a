"""How far are float32 logits from float64's? Two layers of the 8B's shapes, 512 tokens, random weights in bfloat16.

    python benchmarks/float64.py [--out FILE.json]      2 GB of memory, a minute; each kind of product that can run here

The error is the NMSE, sum((ours - exact)^2) / sum(exact^2), of 1,024 logits at each position against `plain.forward`.
The 8B has 128,256 logits; each is a product with another row of the output matrix, so these are as exact.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import random_8b
from machine import about_this_run

from llama3 import plain
from llama3.cpu_model import CpuModel
from llama3.model.batch import Batch
from llama3.model.linear_choice import KINDS, choose_linear, missing

TOKENS = 512
MOST = 1e-11  # of the NMSE; the exit code is 1 if one is larger


def measure() -> dict[str, Any]:
    config = replace(random_8b.CONFIG, n_layers=2, vocab_size=1024, max_seq_len=TOKENS)
    weights = random_8b.random_weights(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, TOKENS)
    exact = plain.forward(tokens.tolist(), config, weights)  # (TOKENS, vocab_size) float64
    found: dict[str, Any] = {"tokens": TOKENS, "layers": config.n_layers}
    for kind in [kind for kind in KINDS[1:] if missing(kind, weights) is None]:
        model = CpuModel(config, weights, linear=choose_linear(weights, kind))
        logits = model.forward(Batch.of([(0, tokens)]), model.new_cache(1, TOKENS), np.arange(TOKENS))
        errors = ((logits - exact) ** 2).sum(axis=1) / (exact**2).sum(axis=1)  # (TOKENS,)
        nmse = float(((logits - exact) ** 2).sum() / (exact**2).sum())
        found[kind] = {"nmse": nmse, "nmse_of_the_worst_row": float(errors.max())}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measure()
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | found, indent=1) + "\n")
    return int(any(kind["nmse"] > MOST for kind in found.values() if isinstance(kind, dict)))


if __name__ == "__main__":
    sys.exit(main())
