"""What the limits of `llama3 compare` are worth: how far two right implementations are apart, on random models.

    python benchmarks/limits.py [--models N] [--out FILE.json]        (needs the extra "oracle")

Each model is computed by this project and by transformers in float32, float16 and bfloat16. Its weights are numbers of
the same dtype, so that only the arithmetic differs. The figures are the worst relative error of a row, of logits and of
activations, over all models. For float16 and bfloat16 it stands in unit roundoffs, too (2**-11 and 2**-8).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from machine import about_this_run  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.checkpoint import load_folder
from llama3.model.transformer import Transformer
from llama3.parity import compare_model
from llama3.parity.write_reference import load, reference_of
from tests.oracle.test_transformer import LENGTH, draw
from tests.tiny import random_tensors, write_hf

DTYPES = {"float32": ("fp32", 2.0**-24), "float16": ("fp16", 2.0**-11), "bfloat16": ("bf16", 2.0**-8)}


def worst_rows(seed: int, dtype: str) -> tuple[float, float]:
    """The worst relative error of a row of logits, and of a row of activations."""
    random = np.random.RandomState(seed)
    config = draw(random, group=(1, 2, 4, 8)[seed % 4])
    tensors = random_tensors(config, seed, DTYPES[dtype][0])
    tokens = random.randint(0, config.vocab_size, LENGTH).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = write_hf(Path(name) / "model", config, tensors)
        theirs = reference_of(load(folder, dtype), tokens, f"seed {seed}", activations=True)
        checkpoint = load_folder(folder)
        report = compare_model(Transformer(checkpoint.config, checkpoint.weights), theirs)
    return float(report.logits["relative"].max()), max(float(x["relative"].max()) for x in report.activations.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=int, default=400, metavar="N", help="random models (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {}
    for dtype, (_, roundoff) in DTYPES.items():
        logits, activations = np.max([worst_rows(seed, dtype) for seed in range(args.models)], axis=0)
        found[dtype] = {"logits": float(logits), "activations": float(activations)}
        if dtype != "float32":
            found[dtype] |= {"logits_roundoffs": logits / roundoff, "activations_roundoffs": activations / roundoff}
        print(dtype, json.dumps(found[dtype]), flush=True)
    if args.out:
        about = about_this_run() | {"torch": torch.__version__, "transformers": transformers.__version__}
        args.out.write_text(json.dumps(about | {"models": args.models, "worst_rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
