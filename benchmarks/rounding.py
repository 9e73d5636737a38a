"""How near do rounded logits come to transformers in bfloat16, and how near does transformers come to itself?

    python benchmarks/rounding.py [FOLDER ...] [--out FILE.json]        (needs the extra "oracle")

For the demo, three random models and each FOLDER in Hugging Face's form: `rounding.forward` against transformers in
bfloat16, with "eager" and with "sdpa" attention. Beside it stands transformers without oneDNN, which adds up products
in another order: a right implementation. All distances are NMSEs of the logits, and are divided by that of float64.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from machine import about_this_run  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3 import Llama, plain
from llama3.checkpoint import load_folder
from llama3.parity import rounding
from llama3.parity.write_reference import load
from tests.tiny import random_tensors, tiny_config, write_hf

TOKENS = 200
LONG = 30  # tokens of a FOLDER's model


def logits_of_transformers(folder: Path, tokens: list[int], attention: str, onednn: bool = True) -> np.ndarray:
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=onednn):
        return load(folder, "bfloat16", attention)(torch.tensor([tokens])).logits[0].double().numpy()


def nmse(x: np.ndarray, theirs: np.ndarray) -> float:
    return float(((x - theirs) ** 2).sum() / (theirs**2).sum())


def measure(folder: Path, tokens: list[int]) -> dict[str, dict[str, float]]:
    checkpoint, found = load_folder(folder), {}
    exact = plain.forward(tokens, checkpoint.config, checkpoint.weights)
    for attention in rounding.ATTENTION:
        theirs = logits_of_transformers(folder, tokens, attention)
        rounded = rounding.forward(tokens, checkpoint.config, checkpoint.weights, attention=attention)
        far = nmse(exact, theirs)
        found[attention] = {
            "float64_nmse": far,
            "rounded": nmse(rounded, theirs) / far,
            "equal_rows": float((rounded == theirs).all(axis=1).mean()),
            "transformers_without_onednn": nmse(logits_of_transformers(folder, tokens, attention, False), theirs) / far,
        }
    return {"tokens": len(tokens), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    random, llama, found = np.random.RandomState(0), Llama.load(), {}
    demo = llama.checkpoint.path
    found["demo"] = measure(demo, llama.encode_chat([{"role": "user", "content": "What is RoPE?"}]))
    found["demo, random tokens"] = measure(demo, random.randint(0, llama.config.vocab_size, TOKENS).tolist())
    for seed, layers in enumerate((2, 3, 4)):
        config = tiny_config(n_layers=layers, n_kv_heads=1 << seed)
        with tempfile.TemporaryDirectory() as name:
            folder = write_hf(Path(name) / "m", config, random_tensors(config, seed, "bf16"))
            found[f"random, {layers} layers"] = measure(folder, random.randint(0, config.vocab_size, TOKENS).tolist())
    for folder in args.folders:
        vocab_size = load_folder(folder).config.vocab_size
        found[folder.resolve().name] = measure(folder, random.randint(0, vocab_size, LONG).tolist())
    print(json.dumps(found, indent=1))
    if args.out:
        about = about_this_run() | {"torch": torch.__version__}
        args.out.write_text(json.dumps(about | {"models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
