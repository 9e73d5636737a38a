"""Times encoding with Llama 3's vocabulary: `byte_pair.py` ("by hand") and tiktoken.

    python benchmarks/tokenizer.py [--out FILE.json]        (needs the extra "test", which includes the vocabulary)

Each figure is the median of three encodings, each by a new tokenizer, so that no chunk is cached.
"""

import argparse
import json
import random
import statistics
import time
from importlib.resources import files
from pathlib import Path

from machine import about_this_run  # the file beside this one

from llama3.tokenizer import Tokenizer

MEGABYTE = 1_000_000


def texts() -> dict[str, str]:
    words = (Path(__file__).parents[1] / "README.md").read_text().split()
    rng = random.Random(0)
    prose = " ".join(rng.choice(words) for _ in range(MEGABYTE // 4))[:MEGABYTE]
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=MEGABYTE))
    return {"1 MB of words": prose, "1 MB of letters": letters, "1,000,000 x": "x" * MEGABYTE}


def seconds(file: Path, text: str, fast: bool) -> float:
    tokenizer = Tokenizer.from_file(file, fast=fast)
    tokenizer.encode("ready")
    start = time.perf_counter()
    tokenizer.encode(text)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    file = Path(str(files("llama_models"))) / "llama3" / "tokenizer.model"
    figures = {}
    print(f"{'':<18}{'by hand':>10}{'tiktoken':>10}")
    for name, text in texts().items():
        found = {way: [seconds(file, text, fast) for _ in range(3)] for way, fast in (("hand", False), ("fast", True))}
        figures[name] = found
        print(f"{name:<18}" + "".join(f"{statistics.median(times):>8.2f} s" for times in found.values()))
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | {"seconds": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
