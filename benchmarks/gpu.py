"""How near to the limits of a GPU does decoding come, and how does it stand beside the best of the others?

    python benchmarks/gpu.py [--out FILE.json] [--parts first prompt ...]    on a GPU with 64 GB
    python benchmarks/gpu.py --tiny            the same code on a CPU, emulated: a smoke test, no figures

On a GPU it needs the extra "oracle", and a torch and a CuPy that see it.

Llama 3 8B of random weights, the same for all, in bf16. Every figure is the median of three runs, but for the one start
that compiles the kernels. A share is that of
the rate of reading, or of multiplying, measured in the same run. The parts come in the order of what they tell; each
takes less than ten minutes, and --out is written anew after every row, so that a run cut short is no run lost.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from gpu_baselines import DECODERS, Baselines, random_model  # the files beside this one
from gpu_floor import LLAMA3_8B, TINY, attention_flops, decode_bytes, prefill_flops
from gpu_ours import FULL, Ours, probes, shapes
from gpu_timing import RUNS, timed
from machine import about_this_run

from llama3.cuda.device import CupyDevice, open_device

START = """
import sys, time
from llama3 import Llama
begun = time.time()
llama = Llama.load(sys.argv[2], device=sys.argv[3])
loaded = time.time()
llama.generate([1, 2, 3], max_tokens=1, temperature=0)
print(loaded - begun, time.time() - float(sys.argv[1]))
"""


class Run:
    def __init__(self, tiny: bool, out: Path | None):
        self.tiny, self.out = tiny, out
        if tiny:
            from tests.cuda.emulator.device import EmulatedDevice

            self.config, self.device, self.where = TINY, EmulatedDevice(), "cpu"
        else:
            self.config, self.device, self.where = LLAMA3_8B, open_device("cuda"), "cuda"
        self.steps = 2 if tiny else 64
        name = torch.cuda.get_device_name() if not tiny else "none: emulated"
        self.report: dict[str, Any] = about_this_run() | {"device": name, "torch": torch.__version__, "rows": []}
        model = random_model(self.config, self.where)
        self.baselines, self.model = Baselines(model, self.config), model
        self.baselines.sync()
        self.ours = Ours(self.device, self.config, model)
        self.report["limits"] = self.limits()
        self.save()

    def limits(self) -> dict[str, float]:
        """The six probes, and the two rates that every share is one of."""
        found = probes(self.device, self.tiny)
        found["matmul_TFLOP_s"] = self.baselines.matmul_rate()
        found["pinned_GB_s"] = self.baselines.pinned_rate()
        for name, value in found.items():
            print(f"{name:44} {value:10.3f}", flush=True)
        return found

    # ---- rows ----

    def row(self, name: str, measure: Callable[[], float], tokens: int = 0, read: int = 0, flops: float = 0) -> None:
        """One figure; what cannot be measured is written down as that, and the rest goes on."""
        row: dict[str, Any] = {"name": name}
        try:
            row["ms"] = ms = measure()
        except Exception as error:
            row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        else:
            if tokens:
                row["tokens_per_second"] = tokens * 1e3 / ms
            if read:
                row["GB_s"] = read / ms / 1e6
                row["share_of_read_bandwidth"] = read / ms / 1e9 / self.report["limits"]["read_only_TB_s"]
            if flops:
                row["TFLOP_s"] = flops / ms / 1e9
                row["share_of_matmul_rate"] = flops / ms / 1e9 / self.report["limits"]["matmul_TFLOP_s"]
        self.report["rows"].append(row)
        print(line(row), flush=True)
        self.save()

    def rows(self, what: str, measure: Callable[[], dict[str, float]], **kind: Any) -> None:
        """Several figures that are measured together; all or none."""
        try:
            found = measure()
        except Exception as error:
            failed = error
            self.row(f"{what}: baselines", lambda: raised(failed))
            return
        for name, ms in found.items():
            self.row(f"{what}: {name}", lambda ms=ms: ms, **kind)

    def save(self) -> None:
        free, total = self.device.memory()
        self.report["memory_GB"] = {"in_use": (total - free) / 1e9, "total": total / 1e9}
        if self.out:
            self.out.write_text(json.dumps(self.report, indent=1) + "\n")

    def context(self, wanted: int) -> int:
        """As much of it as leaves room for the steps."""
        return min(wanted, self.config.max_seq_len - self.steps - 1)

    def decode(self, name: str, batch: int, wanted: int, params: Any = None) -> None:
        context = self.context(wanted)
        read = decode_bytes(self.config, batch, context + self.steps // 2)
        if name == "ours":
            measure = lambda: self.ours.decode(batch, context, self.steps, params)  # noqa: E731
        else:
            measure = lambda: self.baselines.decode(name, batch, context, self.steps)  # noqa: E731
        sampling = FULLY if params else ""
        self.row(f"decode, batch {batch}, context {wanted}: {name}{sampling}", measure, tokens=batch, read=read)
        if name.endswith("compile"):
            torch._dynamo.reset()

    def prefill(self, wanted: int) -> None:
        T = min(wanted, self.config.max_seq_len)
        flops = prefill_flops(self.config, T)
        self.row(f"prefill of {wanted}: ours", lambda: self.ours.prefill(T), tokens=T, flops=flops)
        self.rows(f"prefill of {wanted}", lambda: self.baselines.prefill(T), tokens=T, flops=flops)

    # ---- parts ----

    def first(self) -> None:
        for context in (128, 8192):
            self.decode("ours", 1, context)
        for context in (128, 8192):
            self.decode("fast_compile", 1, context)
        self.decode("ours", 1, 128, FULL)

    def prompt(self) -> None:
        self.prefill(8192)
        T = min(8192, self.config.max_seq_len)
        flops = attention_flops(self.config, T)
        self.row("attention of 8192: ours", lambda: self.ours.attention(T), flops=flops)
        self.rows("attention of 8192", lambda: self.baselines.attention(T), flops=flops)
        for piece in (512, 1024, 8192):  # the engine takes 2,048 rows a step; 512 where others decode beside it
            name = f"in pieces of {piece}, prefill of 8192: ours"
            self.row(
                name, lambda piece=piece: self.ours.prefill(T, piece), tokens=T, flops=prefill_flops(self.config, T)
            )

    def batches(self) -> None:
        for batch in (64, 1, 8, 32):
            self.decode("ours", batch, 1024)
        self.decode("fast_compile", 64, 1024)

    def products(self) -> None:
        for name, (n_out, width) in shapes(self.config).items():
            for who, measure in (("ours", self.ours.product), ("cuBLAS", self.baselines.product)):
                kind = {"read": 2 * n_out * width}
                self.row(f"one row times {name}: {who}", lambda name=name, measure=measure: measure(name), **kind)

    def prompts(self) -> None:
        for T in (128, 512, 2048):
            self.prefill(T)

    def others(self) -> None:
        self.decode("ours", 1, 2048)
        for name in DECODERS[1:]:
            self.decode(name, 1, 128)
        self.decode("fast_compile", 1, 2048)
        for batch in (8, 32):
            self.decode("fast_compile", batch, 1024)

    def start(self) -> None:
        """Weights from the page cache to the device, and a process from its start to its first token."""
        device, layer = self.device, self.ours.transformer.weights.layers[0]
        there = [device.alloc(array.shape, array.dtype) for array in (layer.w13, layer.w2, layer.wqkv)]
        here = [device.download(array) for array in there]
        size = sum(array.nbytes for array in here)

        def upload() -> None:
            for source, into in zip(here, there, strict=True):
                device.upload(source, into=into)

        self.row(UPLOAD, lambda: timed(device.sync, upload), read=0)
        ms = self.report["rows"][-1].get("ms")
        if ms:
            rate = size / ms / 1e6
            self.report["rows"][-1] |= {
                "GB_s": rate,
                "share_of_pinned_rate": rate / self.report["limits"]["pinned_GB_s"],
            }
            print(f"  {rate:.1f} GB/s, {rate / self.report['limits']['pinned_GB_s']:.0%} of a pinned copy", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, max_shard_size="4GB")
            target = "cuda" if isinstance(device, CupyDevice) else "cpu"

            def begin() -> tuple[float, float]:
                command = [sys.executable, "-c", START, str(time.time()), folder, target]
                environment = os.environ | {"CUPY_CACHE_DIR": f"{folder}/kernels"}  # empty before the first
                root = Path(__file__).parents[1]
                ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
                if ran.returncode:
                    raise RuntimeError(ran.stderr.strip().splitlines()[-1])
                loaded, first = map(float, ran.stdout.split())
                return loaded * 1e3, first * 1e3

            def cached() -> dict[str, float]:
                """Both of one start, the median one of three."""
                loaded, first = sorted((begin() for _ in range(RUNS)), key=lambda times: times[1])[RUNS // 2]
                return {"of that, loading weights": loaded, "first token, kernels cached": first}

            self.row("process start: first token, kernels compiled", lambda: begin()[1])
            self.rows("process start", cached)


def raised(error: Exception) -> float:
    raise error


def verdicts(report: dict[str, Any]) -> list[str]:
    """What was to be shown, and what was measured; a figure that is not there was not measured."""
    rows = {row["name"]: row for row in report["rows"]}
    ms = {name: row["ms"] for name, row in rows.items() if "ms" in row}
    nan = float("nan")

    def decode(batch: int, context: int, name: str) -> str:
        return f"decode, batch {batch}, context {context}: {name}"

    def figure(name: str, key: str) -> float:
        return rows.get(name, {}).get(key, nan)

    def faster(ours: str, others: list[str]) -> float:
        """How many times as fast as the fastest of the others."""
        return min([ms[name] for name in others if name in ms], default=nan) / ms.get(ours, nan)

    found = []
    for context, bar in ((128, 0.90), (8192, 0.85)):
        ours, others = decode(1, context, "ours"), [decode(1, context, name) for name in DECODERS]
        found.append((f"decode at {context}: share of reading", figure(ours, "share_of_read_bandwidth"), bar))
        found.append((f"decode at {context}: times as fast as the fastest other", faster(ours, others), 1.10))
    for batch, bar in ((8, 6.5), (32, 20), (64, 34)):
        gained = batch * faster(decode(batch, 1024, "ours"), [decode(1, 1024, "ours")])
        found.append((f"batch {batch}: times the tokens of one", gained, bar))
    prompt = "prefill of 8192: ours"
    others = [name for name in ms if name.startswith("prefill of 8192: ") and name != prompt]
    greedy = decode(1, 128, "ours")
    found += [
        ("prefill of 8192: times as fast as the fastest other", faster(prompt, others), 1 / 1.15),
        ("prefill of 8192: share of multiplying", figure(prompt, "share_of_matmul_rate"), 0.60),
        ("attention of 8192: TFLOP/s", figure("attention of 8192: ours", "TFLOP_s"), 300),
        ("greedy: share of a step with every parameter set", 1 / faster(greedy, [greedy + FULLY]), 0.98),
        ("weights to the device: share of a pinned copy", figure(UPLOAD, "share_of_pinned_rate"), 0.60),
    ]
    beyond = ms.get("process start: first token, kernels cached", nan) - ms.get(
        "process start: of that, loading weights", nan
    )
    found.append(("first token: 3 seconds over what it takes beyond the weights", 3000 / beyond, 1))
    lines = []
    for what, value, bar in found:
        verdict = "not measured" if value != value else "holds" if value >= bar else "does not hold"
        lines.append(f"{what:54} {value:10.3f}   at least {bar:.3f}: {verdict}")
    return lines


FULLY = ", every parameter set"
UPLOAD = "weights from memory to the device"
PARTS = ("first", "prompt", "batches", "products", "prompts", "others", "start")


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:58} not measured: {row['error']}"
    text = f"{row['name']:58} {row['ms']:10.3f} ms"
    if "tokens_per_second" in row:
        text += f" {row['tokens_per_second']:9.1f} tokens/s"
    for share, of in (("share_of_read_bandwidth", "reading"), ("share_of_matmul_rate", "multiplying")):
        if share in row:
            text += f" {row[share]:6.1%} of {of}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, emulated on the CPU: a smoke test")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="some of them, in this order")
    parser.add_argument("--out", type=Path, help="all figures as JSON, written anew after every row")
    args = parser.parse_args()
    run = Run(args.tiny, args.out)
    for part in args.parts:
        print(f"-- {part}", flush=True)
        getattr(run, part)()
    run.save()
    if not args.tiny:
        print("-- what was to be shown")
        print("\n".join(verdicts(run.report)))


if __name__ == "__main__":
    main()
