"""How exact are the logits? The worst relative error of a row, on random models, on real weights and on the demo.

    python benchmarks/parity.py [--out FILE.json]      (needs the extra "oracle" and g++; LLAMA3_STORIES260K names the
                                                       folder of those weights, without which they are left out)

The tests allow 1e-5 for each of them. They allow the CUDA path the error that transformers has in bfloat16. This script
measures the errors themselves.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import about_this_run  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3 import Llama
from llama3.checkpoint import load_folder
from llama3.cuda.transformer import Transformer as CudaTransformer
from llama3.cuda.weights import upload_weights
from llama3.model.batch import Batch
from llama3.model.transformer import Transformer
from llama3.parity import Reference, compare_model, read_reference
from llama3.parity.write_reference import load
from tests.cuda.emulator.device import EmulatedDevice
from tests.cuda.test_transformer import CONFIGS
from tests.reference_cases import CASES
from tests.tiny import random_tensors, write_hf

DEMO_REFERENCE = Path(__file__).parents[1] / "tests" / "weights" / "demo_reference.safetensors"


def worst_of_references() -> dict[str, float]:
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = load_folder(case.write(Path(folder), case.tensors()))
            report = compare_model(Transformer(checkpoint.config, checkpoint.weights), read_reference(case.path))
            found[case.name] = float(report.logits["relative"].max())
    return found


def worst_of_stories(folder: Path) -> float:
    from safetensors.numpy import load_file

    llama, file = Llama.load(folder), load_file(folder / "reference.safetensors")
    tokens = file["tokens"].astype(np.int64)
    reference = Reference(tokens, file["logits"], np.arange(len(tokens)), llama.config, "float32", "transformers", "")
    return float(compare_model(llama.model, reference).logits["relative"].max())


def cuda_beside_transformers() -> dict[str, float]:
    """The mean error of a row on emulated CUDA, divided by the mean error of transformers in bfloat16."""
    found = {}
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_hf(Path(folder), config, random_tensors(config, dtype="bf16"))
            tokens = np.random.RandomState(0).randint(0, config.vocab_size, 70).astype(np.int32)
            exact, theirs = (logits_of_transformers(Path(folder), dtype, tokens) for dtype in ("float32", "bfloat16"))
            device = EmulatedDevice()
            model = CudaTransformer(device, config, upload_weights(device, load_folder(folder).weights))
            ours = model.forward(Batch.of([(0, tokens)]), model.new_cache(1, 70), np.arange(70))
            found[name] = float(mean_error(ours, exact) / mean_error(theirs, exact))
    return found


def logits_of_transformers(folder: Path, dtype: str, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return load(folder, dtype)(torch.tensor(tokens[None].astype(np.int64))).logits[0].float().numpy()


def mean_error(found: np.ndarray, exact: np.ndarray) -> float:
    return (np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    references = worst_of_references()
    demo = compare_model(Llama.load().model, DEMO_REFERENCE)
    found = {
        "references": references,
        "references_worst": max(references.values()),
        "demo_worst": float(demo.logits["relative"].max()),
        "cuda_over_transformers_bf16": cuda_beside_transformers(),
    }
    if stories := os.environ.get("LLAMA3_STORIES260K"):
        found["stories260k_worst"] = worst_of_stories(Path(stories))
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
