"""The whole Llama 3 8B on a CPU: its memory and its speed, beside transformers in bfloat16.

    python benchmarks/make_checkpoint.py FOLDER
    python benchmarks/full_8b.py --checkpoint FOLDER [--out FILE.json] [--linear numpy] [--turns 3]

Needs the extra "oracle", and 20 GB of memory that nothing else uses. It takes an hour or more on two cores.

Ours and transformers load the checkpoint in turn, each in a process of its own: seconds until the weights are loaded,
seconds until the first token after a prompt of 16, tokens per second after it, peak of resident memory. Then ours reads
longer prompts. Before each process the files are read once, so that the weights are in memory as far as it holds them.

FILE.json is written after each measurement. If it exists, the run goes on with what is missing in it.
"""

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import about_this_run, peak_memory  # the file beside this one

SHORT = 16  # tokens of the prompt that both sides read
TOKENS = 8  # decoded after it; the first one is not in the rate
PROMPTS = (512, 2047, 8191)  # tokens, with one of the answer: the contexts 2,048 and 8,192 are full
LIMITS = {2047: 17.0, 8191: 19.5}  # GB of memory at the peak; the weights alone have 16.06
BESIDE = 3e9  # bytes of memory that a process may need beside the weights
NMSE = 1e-2  # of the logits after the short prompt; ours has float32 activations, transformers bfloat16
SIDES = ("ours", "transformers")
FIGURES = {
    "peak_gb": "peak of memory, GB",
    "import_s": "import, s",
    "load_s": "load, s",
    "first_token_s": f"first token after {SHORT}, s",
    "decode_tokens_per_s": "decode, tokens/s",
}
Result = dict[str, Any]


# ---- the worker: a process that makes one measurement


def token_ids(count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, 128_000, count).tolist()


def ours(folder: Path, prompt: int, tokens: int) -> Result:
    """Load as the command line does, which reads the weights ahead, and generate."""
    start = time.perf_counter()
    from llama3 import Llama
    from llama3.cli.loading import read_ahead, read_by_each_token

    imported = time.perf_counter()
    llama = Llama.load(folder, device="cpu")
    read_ahead(read_by_each_token(llama.checkpoint.weights), quiet=True)
    loaded = time.perf_counter()
    logits: list[np.ndarray] = []

    def keep(_: list[int], row: np.ndarray) -> np.ndarray:
        if not logits:
            logits.append(row[::1000].copy())
        return row

    def times() -> Iterator[float]:
        parameters = {"max_tokens": tokens, "temperature": 0, "stop_ids": []}
        for _ in llama.stream(token_ids(prompt), logits_processor=keep, **parameters):
            yield time.perf_counter()

    return {"import_s": imported - start, "load_s": loaded - imported} | timed(times) | {"logits": logits[0].tolist()}


def filled(folder: Path, context: int, tokens: int) -> Result:
    """Decode `tokens` after `context` positions that are random numbers: what reading a prompt leaves, in no time."""
    from llama3 import Llama
    from llama3.cli.loading import read_ahead, read_by_each_token
    from llama3.model.batch import Batch

    llama = Llama.load(folder, device="cpu")
    read_ahead(read_by_each_token(llama.checkpoint.weights), quiet=True)
    c, model, rng = llama.config, llama.model, np.random.default_rng(0)
    cache = model.new_cache(1, context + tokens)
    cache.allocate()
    one = rng.standard_normal((2, 1, c.n_kv_heads, context, c.head_dim), np.float32)
    cache.restore(0, *(np.broadcast_to(a, (c.n_layers, *a.shape[1:])) for a in one))  # each layer has the same

    def times() -> Iterator[float]:
        for token in token_ids(tokens):
            model.forward(Batch.of([(0, [token])]), cache, np.array([0]))
            yield time.perf_counter()

    return timed(times)


def transformers(folder: Path, prompt: int, tokens: int) -> Result:
    start = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM

    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = time.perf_counter()
    logits: list[np.ndarray] = []

    def times() -> Iterator[float]:
        ids, cache = torch.tensor([token_ids(prompt)]), None
        for _ in range(tokens):
            with torch.inference_mode():
                out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            logits.append(out.logits[0, -1, ::1000].float().numpy())
            yield time.perf_counter()

    return {"import_s": imported - start, "load_s": loaded - imported} | timed(times) | {"logits": logits[0].tolist()}


def timed(times: Callable[[], Iterator[float]]) -> Result:
    """`times` gives the time of each token."""
    start = time.perf_counter()
    first, *later = times()
    rate = len(later) / (later[-1] - first) if later else None
    return {"first_token_s": first - start, "decode_tokens_per_s": rate}


def work(args: argparse.Namespace) -> None:
    side, prompt, tokens = args.worker.split(",")
    measure = {"ours": ours, "filled": filled, "transformers": transformers}[side]
    result = measure(args.checkpoint, int(prompt), int(tokens))
    print(json.dumps(result | {"peak_gb": peak_memory() / 1e9}))


# ---- the parent: one worker after the other


def jobs(turns: int) -> dict[str, str]:
    """Name -> what the worker is told: the side, the tokens of the prompt, those of the answer."""
    short = {f"{side} {turn}": f"{side},{SHORT},{TOKENS}" for turn in range(1, turns + 1) for side in SIDES}
    return short | {f"ours, prompt {n}": f"ours,{n},1" for n in PROMPTS}


def measure(job: str, args: argparse.Namespace) -> Result:
    """Run one worker. Raises RuntimeError if there is too little memory, or with the last line of its errors."""
    files = sorted(args.checkpoint.glob("*.safetensors"))
    needed, available = sum(file.stat().st_size for file in files) + BESIDE, available_memory()
    if available < needed:
        raise RuntimeError(f"{available / 1e9:.1f} GB of memory are available; expected {needed / 1e9:.1f}")
    for file in files:
        with file.open("rb", buffering=0) as stream:
            buffer = bytearray(2**24)
            while stream.readinto(buffer):
                pass
    command = [sys.executable, __file__, "--checkpoint", str(args.checkpoint), "--worker", job]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    if args.linear:
        environment["LLAMA3_LINEAR"] = args.linear
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"the process ended with {ran.returncode}; -9: out of memory"]
        raise RuntimeError(lines[-1])
    return json.loads(ran.stdout.splitlines()[-1])


def available_memory() -> float:
    """In bytes, with that of files, which the system can drop; on Linux only."""
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return 1024 * int(found[1]) if found else float("inf")


def about(args: argparse.Namespace) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in args.checkpoint.glob("*.safetensors"))
    layers = json.loads((args.checkpoint / "config.json").read_text())["num_hidden_layers"]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return (
        about_this_run() | versions | {"linear": args.linear or "default", "layers": layers, "weights_gb": size / 1e9}
    )


def report_of(out: Path | None, new: dict[str, Any], same: tuple[str, ...]) -> dict[str, Any]:
    """The report so far, or a new one. Raises ValueError if the file's values of the names in `same` are others."""
    if not (out and out.exists()):
        return new | {"measured": {}}
    report = json.loads(out.read_text())
    for name in same:
        if report.get(name) != new[name]:
            raise ValueError(f"{out}: its {name} is {report.get(name)}, this run's {new[name]}: name another file")
    return report


def write(path: Path, report: dict[str, Any]) -> None:
    """Replace the file as a whole: a run that is killed while it writes loses nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def table(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, its limit) of each row; medians of the turns."""
    measured: dict[str, Result] = report["measured"]

    def median(side: str, name: str) -> str:
        values = [result[name] for key, result in measured.items() if key.split()[0] == side]
        return f"{statistics.median(values):.2f}" if values else "not measured"

    rows = [(f"{what}, {side}", median(side, name), "") for name, what in FIGURES.items() for side in SIDES]
    errors = [
        nmse(measured[key]["logits"], measured[twin]["logits"])
        for key in measured
        if key.startswith("ours ") and (twin := key.replace("ours", "transformers")) in measured
    ]
    rows.append(("nmse of the logits", f"{max(errors):.1e}" if errors else "not measured", f"<= {NMSE}"))
    for n in PROMPTS:
        found = measured.get(f"ours, prompt {n}")
        figures = ["not measured"] * 3
        if found:
            figures = [f"{found['first_token_s']:.1f}", f"{n / found['first_token_s']:.2f}", f"{found['peak_gb']:.2f}"]
        limits = ("", "", f"<= {LIMITS[n]}" if n in LIMITS else "")
        rows += [
            (f"prompt of {n}, {what}", *pair) for what, *pair in zip(("s", "tokens/s", "peak, GB"), figures, limits)
        ]
    return rows


def nmse(a: list[float], b: list[float]) -> float:
    return float(np.sum(np.subtract(a, b) ** 2) / np.sum(np.square(b)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the measurements as JSON")
    parser.add_argument("--linear", choices=("numpy", "numba", "amx"), help="LLAMA3_LINEAR of our processes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args)
        return 0
    try:
        report = report_of(args.out, about(args), ("commit", "machine", "linear", "layers"))
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 1
    failed = False
    for name, job in jobs(args.turns).items():
        if name in report["measured"]:
            continue
        print(f"{name} ...", end=" ", flush=True)
        try:
            result = measure(job, args)
        except RuntimeError as error:
            failed = True
            print(error)
            continue
        print(", ".join(f"{key} {value:.2f}" for key, value in result.items() if isinstance(value, float)))
        report["measured"][name] = result
        if args.out:
            write(args.out, report)
    for what, figure, limit in table(report):
        print(f"{what:40}{figure:>14}   {limit}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
