"""The report of gpu.py: rows by name, from one or more sittings on the same kind of GPU, in one file.

A sitting is one run of the command. It measures the limits of its GPU, and the shares of its rows are relative to
these. A row that a file holds already is not measured again, so a run that was stopped goes on where it ended.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = ("kernels/*.cu*", "llama3/**/*.py", "benchmarks/gpu*.py")
ATTEMPTS = 2  # how often a row that fails is tried, each time in another sitting


class ReportError(Exception):
    """The file cannot take these rows; the message is one line."""


@dataclass(frozen=True)
class Figure:
    """What a row measures, and what its shares are computed from."""

    tokens: int = 0  # of one measured step
    read: int = 0  # bytes that it reads
    flops: float = 0  # what it computes
    copied: int = 0  # bytes that it copies from the host


@dataclass(frozen=True)
class Row:
    """measure: returns the milliseconds of each run, or a dictionary with these under "runs_ms" and with notes."""

    name: str
    measure: Callable[[], list[float] | dict[str, Any]]
    figure: Figure
    seconds: float  # about how long it takes
    alone: bool = False  # it needs the memory of the GPU for other processes


def sources_digest() -> str:
    """Names the code that is measured, also where there is no git, or where a file was changed and not committed."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


class Report:
    """`what`: what all rows have in common, such as the GPU's name; `sitting`: what is only true of this run."""

    def __init__(self, out: Path | None, what: dict[str, str], sitting: dict[str, Any]):
        """Reads the file, if there is one. Raises ReportError if its rows are of something else."""
        self.out, self.what, self.sitting = out, what, sitting
        self.sittings, self.rows = [], {}
        if out and out.exists():
            self._read(out)
        self.sittings.append(sitting)

    def _read(self, out: Path) -> None:
        try:
            found = json.loads(out.read_text(encoding="utf-8"))
            theirs, self.sittings = {key: found[key] for key in self.what}, found["sittings"]
            self.rows = {row["name"]: row for row in found["rows"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{out} is no report of this benchmark ({error!r}): name another file") from error
        for key, ours in self.what.items():
            if theirs[key] != ours:
                raise ReportError(
                    f"{out} holds rows of {key} {theirs[key]}, and this is {key} {ours}: name another file with --out, "
                    "or delete this one"
                )

    def wants(self, name: str) -> bool:
        """Is this row still to be measured?"""
        row = self.rows.get(name, {})
        return "ms" not in row and row.get("attempts", 0) < ATTEMPTS

    def add(self, row: Row, beside: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure a row and save it. A failure is recorded in its place.

        beside: what else to write down right after the measurement, such as the clocks.
        """
        found: dict[str, Any] = {"name": row.name, "sitting": len(self.sittings) - 1}
        attempts = self.rows.get(row.name, {}).get("attempts", 0) + 1
        try:
            measured = row.measure()
            found |= measured if isinstance(measured, dict) else {"runs_ms": measured}
            found["ms"] = median(found["runs_ms"])
            found |= shares(found["ms"], row.figure, self.sitting["limits"]) | beside()
        except Exception as error:
            found |= {"error": one_line(error), "attempts": attempts}
        self.rows[row.name] = found
        self.save()
        return found

    def save(self) -> None:
        if self.out:
            report = self.what | {"sittings": self.sittings, "rows": list(self.rows.values())}
            partial = self.out.with_name(self.out.name + ".partial")
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.out)  # never half a file, even if the machine is taken away now


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def shares(ms: float, figure: Figure, limits: dict[str, float]) -> dict[str, float]:
    """Rates, and shares of this sitting's limits where it has measured them."""
    out = {}
    if figure.tokens:
        out["tokens_per_second"] = figure.tokens * 1e3 / ms
    for amount, rate, unit, limit, share in (
        (figure.read, "GB_s", 1e6, limits.get("read_only_TB_s", 0) * 1e3, "share_of_read_bandwidth"),
        (figure.flops, "TFLOP_s", 1e9, limits.get("matmul_TFLOP_s"), "share_of_matmul_rate"),
        (figure.copied, "GB_s", 1e6, limits.get("pinned_GB_s"), "share_of_pinned_rate"),
    ):
        if amount:
            out[rate] = amount / ms / unit
            if limit:
                out[share] = out[rate] / limit
    return out


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:62} not measured: {row['error']}"
    text = f"{row['name']:62} {row['ms']:10.3f} ms"
    if "tokens_per_second" in row:
        text += f" {row['tokens_per_second']:9.1f} tokens/s"
    for share, of in (
        ("share_of_read_bandwidth", "reading"),
        ("share_of_matmul_rate", "multiplying"),
        ("share_of_pinned_rate", "a pinned copy"),
    ):
        if share in row:
            text += f" {row[share]:6.1%} of {of}"
    return text + (f"  ({row['note']})" if "note" in row else "")
