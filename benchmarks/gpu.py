"""How close does decoding come to the limits of a GPU, and how does it compare with the best other implementations?

    python benchmarks/gpu.py [--out FILE.json] [--parts first prompt ...]    on a GPU with 64 GB
    python benchmarks/gpu.py --tiny            the same code on a CPU, emulated: a smoke test without useful figures

On a GPU it needs the extra "oracle", and a torch and a CuPy that support the GPU.

All implementations run Llama 3 8B in bf16 with the same random weights. Every figure is the median of three runs,
except for the one process start that compiles the kernels. Shares are relative to the read bandwidth, or to the rate of
a large product, that the same run has measured. The most important parts come first. Each part takes less than ten
minutes, and --out is rewritten after every row, so that an interrupted run keeps its figures.
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

            self.config, self.device, self.torch_device = TINY, EmulatedDevice(), "cpu"
        else:
            self.config, self.device, self.torch_device = LLAMA3_8B, open_device("cuda"), "cuda"
        self.steps = 2 if tiny else 64
        name = torch.cuda.get_device_name() if not tiny else "none: emulated"
        self.report: dict[str, Any] = about_this_run() | {"device": name, "torch": torch.__version__, "rows": []}
        model = random_model(self.config, self.torch_device)
        self.baselines, self.model = Baselines(model, self.config), model
        self.baselines.sync()
        self.ours = Ours(self.device, self.config, model)
        self.report["limits"] = self.limits()
        self.save()

    def limits(self) -> dict[str, float]:
        """The six probes, the rate of a large product, and the rate of a pinned copy."""
        found = probes(self.device, self.tiny)
        found["matmul_TFLOP_s"] = self.baselines.matmul_rate()
        found["pinned_GB_s"] = self.baselines.pinned_rate()
        for name, value in found.items():
            print(f"{name:44} {value:10.3f}", flush=True)
        return found

    # ---- rows ----

    def row(self, name: str, measure: Callable[[], float], tokens: int = 0, read: int = 0, flops: float = 0) -> None:
        """Measure one figure. If that fails, the error is recorded in its place, and the benchmark goes on.

        tokens: of one measured step; read: the bytes that it reads; flops: what it computes.
        """
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

    def rows(self, name: str, measure: Callable[[], dict[str, float]], **kind: Any) -> None:
        """Several figures that are measured together: if one fails, all are missing."""
        try:
            found = measure()
        except Exception as error:
            failed = error
            self.row(f"{name}: baselines", lambda: raised(failed))
            return
        for variant, ms in found.items():
            self.row(f"{name}: {variant}", lambda ms=ms: ms, **kind)

    def save(self) -> None:
        free, total = self.device.memory()
        self.report["memory_GB"] = {"in_use": (total - free) / 1e9, "total": total / 1e9}
        if self.out:
            self.out.write_text(json.dumps(self.report, indent=1) + "\n")

    def context(self, wanted: int) -> int:
        """The wanted context, or a shorter one that leaves room for the steps."""
        return min(wanted, self.config.max_seq_len - self.steps - 1)

    def decode(self, name: str, batch: int, wanted: int, params: Any = None) -> None:
        context = self.context(wanted)
        read = decode_bytes(self.config, batch, context + self.steps // 2)
        if name == "ours":
            measure = lambda: self.ours.decode(batch, context, self.steps, params)  # noqa: E731
        else:
            measure = lambda: self.baselines.decode(name, batch, context, self.steps)  # noqa: E731
        sampling = ALL_PARAMETERS if params else ""
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
        # The engine reads 2,048 prompt rows a step, or 512 while other requests decode.
        for piece in (512, 1024, 8192):
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
            for library, measure in (("ours", self.ours.product), ("cuBLAS", self.baselines.product)):
                kind = {"read": 2 * n_out * width}
                self.row(f"one row times {name}: {library}", lambda name=name, measure=measure: measure(name), **kind)

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
        """The upload of weights from memory, and a process from its start to its first token."""
        self._upload()
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, max_shard_size="4GB")
            device_name = "cuda" if isinstance(self.device, CupyDevice) else "cpu"

            def median_start() -> dict[str, float]:
                """Both figures from the same start: the one with the median time to the first token."""
                starts = sorted((start_process(folder, device_name) for _ in range(RUNS)), key=lambda times: times[1])
                loaded, first = starts[RUNS // 2]
                return {"of that, loading weights": loaded, "first token, kernels cached": first}

            self.row("process start: first token, kernels compiled", lambda: start_process(folder, device_name)[1])
            self.rows("process start", median_start)

    def _upload(self) -> None:
        device, layer = self.device, self.ours.transformer.weights.layers[0]
        targets = [device.alloc(array.shape, array.dtype) for array in (layer.w13, layer.w2, layer.wqkv)]
        sources = [device.download(array) for array in targets]
        size = sum(array.nbytes for array in sources)

        def upload() -> None:
            for source, into in zip(sources, targets, strict=True):
                device.upload(source, into=into)

        self.row(UPLOAD, lambda: timed(device.sync, upload), read=0)
        ms = self.report["rows"][-1].get("ms")
        if ms:
            rate = size / ms / 1e6
            share = rate / self.report["limits"]["pinned_GB_s"]
            self.report["rows"][-1] |= {"GB_s": rate, "share_of_pinned_rate": share}
            print(f"  {rate:.1f} GB/s, {share:.0%} of a pinned copy", flush=True)


def start_process(folder: str, device_name: str) -> tuple[float, float]:
    """Milliseconds for loading the weights, and from the start of the process to its first token."""
    command = [sys.executable, "-c", START, str(time.time()), folder, device_name]
    environment = os.environ | {"CUPY_CACHE_DIR": f"{folder}/kernels"}  # empty at the first start, which compiles
    root = Path(__file__).parents[1]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip().splitlines()[-1])
    loaded, first = map(float, ran.stdout.split())
    return loaded * 1e3, first * 1e3


def raised(error: Exception) -> float:
    raise error


def verdicts(report: dict[str, Any]) -> list[str]:
    """Each target of the project with the measured figure, one line each. A missing figure counts as not measured."""
    rows = {row["name"]: row for row in report["rows"]}
    ms = {name: row["ms"] for name, row in rows.items() if "ms" in row}
    nan = float("nan")

    def decode(batch: int, context: int, name: str) -> str:
        return f"decode, batch {batch}, context {context}: {name}"

    def figure(name: str, key: str) -> float:
        return rows.get(name, {}).get(key, nan)

    def faster(ours: str, others: list[str]) -> float:
        """The speed relative to the fastest of the others."""
        return min([ms[name] for name in others if name in ms], default=nan) / ms.get(ours, nan)

    found = []
    for context, target in ((128, 0.90), (8192, 0.85)):
        ours, others = decode(1, context, "ours"), [decode(1, context, name) for name in DECODERS]
        found.append((f"decode at {context}: share of reading", figure(ours, "share_of_read_bandwidth"), target))
        found.append((f"decode at {context}: times as fast as the fastest other", faster(ours, others), 1.10))
    for batch, target in ((8, 6.5), (32, 20), (64, 34)):
        gained = batch * faster(decode(batch, 1024, "ours"), [decode(1, 1024, "ours")])
        found.append((f"batch {batch}: times the tokens of one", gained, target))
    prompt = "prefill of 8192: ours"
    others = [name for name in ms if name.startswith("prefill of 8192: ") and name != prompt]
    greedy = decode(1, 128, "ours")
    found += [
        ("prefill of 8192: times as fast as the fastest other", faster(prompt, others), 1 / 1.15),
        ("prefill of 8192: share of multiplying", figure(prompt, "share_of_matmul_rate"), 0.60),
        ("attention of 8192: TFLOP/s", figure("attention of 8192: ours", "TFLOP_s"), 300),
        ("greedy: share of a step with every parameter set", 1 / faster(greedy, [greedy + ALL_PARAMETERS]), 0.98),
        ("weights to the device: share of a pinned copy", figure(UPLOAD, "share_of_pinned_rate"), 0.60),
    ]
    beyond = ms.get("process start: first token, kernels cached", nan) - ms.get(
        "process start: of that, loading weights", nan
    )
    found.append(("first token: 3 s / (time without loading weights)", 3000 / beyond, 1))
    lines = []
    for name, value, target in found:
        verdict = "not measured" if value != value else "holds" if value >= target else "does not hold"
        lines.append(f"{name:54} {value:10.3f}   at least {target:.3f}: {verdict}")
    return lines


ALL_PARAMETERS = ", every parameter set"
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these, in this order")
    parser.add_argument("--out", type=Path, help="all figures as JSON, rewritten after every row")
    args = parser.parse_args()
    run = Run(args.tiny, args.out)
    for part in args.parts:
        print(f"-- {part}", flush=True)
        getattr(run, part)()
    run.save()
    if not args.tiny:
        print("-- targets")
        print("\n".join(verdicts(run.report)))


if __name__ == "__main__":
    main()
