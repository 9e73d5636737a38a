"""How close does decoding come to the limits of a GPU, and how does it compare with the best other implementations?

    python benchmarks/gpu.py --out FILE.json [--minutes 9] [--parts first prompt ...]      on a GPU with 80 GB
    python benchmarks/gpu.py --dry-run     every line of it on a machine without a GPU: stand-ins check what it calls

On a GPU it needs transformers, and a torch and a CuPy that support the GPU. Install transformers alone where such a
torch is installed already: the extra "oracle" would replace it.

All implementations run Llama 3 8B in bf16 with the same random weights. Every figure is the median of three runs,
except for the one process start that compiles the kernels. Shares are relative to the read bandwidth, or to the rate of
a large product, that the same sitting has measured. The most important rows come first.

A sitting starts no row that would end after --minutes. If rows are left, the exit status is 3, and the same command
goes on with them. The file is rewritten after every row, so that an interrupted sitting keeps its figures. The rows of
part "start" come in a sitting of their own, because the processes that they start need the memory of the GPU.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))
import gpu_card  # the files beside this one
import gpu_parts
import gpu_start
import gpu_timing
import gpu_torch
import torch
from gpu_floor import LLAMA3_8B, TINY
from gpu_probes import probes
from gpu_report import Report, ReportError, Row, line, one_line, sources_digest
from gpu_verdicts import verdicts
from machine import about_this_run

from llama3.config import ModelConfig
from llama3.cuda.device import open_device
from llama3.errors import DeviceError

LEFT = 3  # exit status: rows are left


class Sitting:
    """One run of the command. Raises ReportError if `out` holds rows of something else, DeviceError without a GPU."""

    def __init__(self, out: Path | None, parts: list[str], minutes: float, torch_device: str = "cuda"):
        self.parts, self.ends = parts, time.monotonic() + 60 * minutes
        self.device, self.torch_device = open_device("cuda"), torch_device
        what = {"card": gpu_card.card_name(), "sources": sources_digest(), **gpu_card.about_libraries()}
        self.report = Report(out, what, about_this_run() | {"limits": {}})
        self.sides = gpu_parts.Sides(LLAMA3_8B, self.device, torch_device)

    def run(self, checkpoint: ModelConfig = LLAMA3_8B) -> int:
        """Measure rows until the time is over; returns how many are left. checkpoint: of the part `start`."""
        with tempfile.TemporaryDirectory() as folder:
            rows = list(gpu_parts.rows(self.parts, self.sides, gpu_start.Starts(Path(folder), checkpoint)))
            left = [row for row in rows if self.report.wants(row.name)]
            together = [row for row in left if not row.alone]
            self.measure(together or left)
            return sum(self.report.wants(row.name) for row in rows)

    def measure(self, rows: list[Row]) -> None:
        """Measure these rows in their order, until the time is over or the GPU fails."""
        for i, row in enumerate(rows):
            if i and time.monotonic() + row.seconds > self.ends:
                return
            if i == 0:
                self.find_limits(row.alone)
            gpu_card.give_back_memory()
            print(line(self.report.add(row, gpu_card.beside)), flush=True)
            if why := gpu_card.failure():
                print(f"the GPU fails, and later rows would, too: {why}")
                return

    def find_limits(self, alone: bool) -> None:
        """The rates that shares are relative to. One that cannot be measured is left out, and so are its shares."""
        where, wanted = self.torch_device, [lambda: {"pinned_GB_s": gpu_torch.pinned_rate(where)}]
        if not alone:
            wanted += [lambda: probes(self.device, where), lambda: {"matmul_TFLOP_s": gpu_torch.matmul_rate(where)}]
        for find in wanted:
            gpu_card.give_back_memory()
            try:
                self.report.sitting["limits"] |= find()
            except Exception as error:
                print(f"a limit could not be measured: {one_line(error)}", flush=True)
        self.report.sitting |= {"beside_limits": gpu_card.beside()}
        for name, value in self.report.sitting["limits"].items():
            print(f"{name:62} {value:10.3f}", flush=True)
        self.report.save()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=gpu_parts.PARTS, default=gpu_parts.PARTS, help="only these parts")
    parser.add_argument("--minutes", type=float, default=9, help="start no row that would end later (default 9)")
    parser.add_argument("--out", type=Path, help="the report, as JSON; rows that it holds are not measured again")
    parser.add_argument("--dry-run", action="store_true", help="with stand-ins for the GPU: no figure means anything")
    args = parser.parse_args(arguments)
    try:
        if args.dry_run:
            return dry_run(args.out, args.parts)
        if not torch.cuda.is_available():
            raise DeviceError(f"torch {torch.__version__} finds no GPU; --dry-run needs none")
        return report_on(Sitting(args.out, args.parts, args.minutes))
    except (ReportError, DeviceError) as error:
        print(error, file=sys.stderr)
        return 1


def report_on(sitting: Sitting, checkpoint: ModelConfig = LLAMA3_8B) -> int:
    """Returns the exit status."""
    left = sitting.run(checkpoint)
    print("-- targets", *verdicts(sitting.report.rows), sep="\n")
    if left:
        print(f"{left} rows are left: give the same command again")
    return LEFT if left else 0


def dry_run(out: Path | None, parts: list[str]) -> int:
    """All sittings with stand-ins, with the shapes of Llama 3 8B; only the part `start` has a tiny checkpoint."""
    from tests.cuda.stand_ins import a_gpu

    shorter = patch.multiple(gpu_timing, RUNS=1, WARM=1, WARM_STEPS=1, STEPS=2, GRAPHS=2)
    with tempfile.TemporaryDirectory() as folder, shorter, a_gpu() as card:
        out = out or Path(folder) / "report.json"
        while report_on(Sitting(out, parts, 600, card.torch_device), TINY) == LEFT:
            pass
        print(f"-- at most {card.peak / 1e9:.1f} of {card.total / 1e9:.1f} GB were in use")
        failed = [row["name"] for row in json.loads(out.read_text())["rows"] if "error" in row]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
