"""Names the fault in another implementation: the one that reproduces its numbers when planted in plain.py.

The other side's logits (and activations, if it has them) are compared with those of the right model and of the model
with each known fault. A fault is named if it brings them NEARER times as near, and to within rounding, which is
measured: the same run, each result rounded to the other side's dtype. Else the first activation that differs is named.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy import ndarray as Array

from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.weights import Weights
from llama3.parity.beginning import beginning
from llama3.parity.explanation import Explanation, Tried
from llama3.parity.faults import fixed, from_row, numbers
from llama3.parity.hints import hint
from llama3.parity.planted import Fault, PlainModel, Run
from llama3.parity.reference_file import Reference
from llama3.parity.report import RTOL, Report
from llama3.parity.search import distance, search

NEARER = 3.0  # a fault must bring the numbers nearer by this factor
ROUNDING = 6.0  # and leave no more than this many times the difference that rounding makes in our own run
SURE = 100.0  # nearer by so much and to within rounding, no other fault is tried


def explained(report: Report, ours: Reference, config: ModelConfig, weights: Weights) -> Report:
    """The same report with its `explanation`. ours: what report.reference was compared with, or itself if the model
    was compared with the file; config, weights: of the right model. Raises CheckpointError as `explain` does.
    """
    if report.ok:
        return replace(report, explanation=Explanation(None, [], 0.0, 0.0))
    return replace(report, explanation=explain(ours, config, weights, report.reference.tokens))


def explain(ours: Reference, config: ModelConfig, weights: Weights, tokens: Array | None = None) -> Explanation:
    """Find what makes the other side's numbers, `ours`, differ from those of the right model.

    tokens: those of the right numbers, if they may differ from ours.tokens by <|begin_of_text|>. Raises CheckpointError
    if the file belongs to another model, or if none of its logits is finite.
    """
    for name in ("vocab_size", "dim", "n_layers"):
        if getattr(ours.config, name) != getattr(config, name):
            found, expected = getattr(ours.config, name), getattr(config, name)
            raise CheckpointError(
                f"{name} is {found} in the file and {expected} in the model: these are different models"
            )
    return _Search(ours, config, weights).explanation(beginning(ours.tokens, tokens))


class _Search:
    def __init__(self, ours: Reference, config: ModelConfig, weights: Weights):
        self.ours, self.config = ours, config
        self.finite = np.isfinite(ours.logits).all(axis=1)  # (n,)
        if not self.finite.any():
            raise CheckpointError("none of the logits is finite; expected numbers, to see which fault makes them")
        self.rows = ours.positions[self.finite]  # positions of the logits that are compared
        self.logits = ours.logits[self.finite].astype(np.float64)  # (rows, vocab_size)
        self.size = np.maximum(np.linalg.norm(self.logits, axis=1, keepdims=True), 1e-30)  # (rows, 1)
        self.model = PlainModel(config, weights, ours.tokens.tolist(), list(ours.activations))
        self.tied = weights.output is weights.tok_embeddings or config.tied_embeddings
        self.tried: list[Tried] = []
        self.right = distance(self.errors_of(self.model.right))

    def errors_of(self, run: Run) -> Array:
        """(rows, vocab_size): each row's difference from the other side, relative to that row's size."""
        return (run.logits[self.rows] - self.logits) / self.size

    @cached_property
    def rounding(self) -> float:
        return self.noise(None, None)

    def noise(self, fault: Fault | None, layer: int | None) -> float:
        """How far rounding to the other side's dtype moves this run."""
        exact = self.model.run(fault, layer).logits
        inexact = self.model.run(fault, layer, _dtype(self.ours)).logits
        return distance((exact - inexact)[self.rows] / self.size)

    def explanation(self, bos: str | None) -> Explanation:
        same = self.right <= max(ROUNDING * self.rounding, RTOL[_dtype(self.ours)][0])
        best = None if bos and same else self.best()
        nearest = sorted(self.tried, key=lambda t: t.distance)
        if best is not None:
            where = "" if best.layer is None else f" in {self.place(best.layer)} alone"
            cause = f"{best.fault.cause}: {best.fault.what}{where}"
            factor = self.right / max(best.distance, 1e-30)
            lines = [
                f"CAUSE: {cause}",
                f"With this fault, our model is {best.distance:.1e} from the other side's logits, {factor:,.0f} "
                f"times nearer than without ({self.right:.1e}).",
            ]
        elif bos:
            cause, lines = "bos", []
        elif same:
            cause = "rounding"
            lines = [
                f"CAUSE: rounding alone: {_dtype(self.ours)} explains a difference of {self.right:.1e}, "
                "and no known fault comes nearer."
            ]
        else:
            cause, lines = self.unknown(nearest)
        if bos:
            cause = f"bos: {bos}" + ("" if cause == "bos" else f"; {cause}")
            lines = [f"CAUSE: {bos} in the other side's tokens.", *lines]
        return Explanation(cause, lines, self.right, self.rounding, nearest)

    def place(self, layer: int) -> str:
        return "the final norm" if layer == self.config.n_layers else f"layer {layer}"

    def best(self) -> Tried | None:
        """The fault that reproduces the other side's numbers, sought in every layer, then in single layers."""
        places: list[int | None] = [None, *self.layers()]
        for layer in places:
            found = self.best_in(layer)
            if found is not None:
                return found
        return None

    def layers(self) -> list[int]:
        """The layers where a fault may sit alone: the first whose output differs, or all if no output is known."""
        for i in range(self.config.n_layers):
            if (theirs := self.ours.activations.get(f"layers.{i}")) is None:
                return list(range(self.config.n_layers + 1))
            if _differs(self.model.right.values[f"layers.{i}"], theirs, _dtype(self.ours)):
                return [i]
        return [self.config.n_layers]

    def best_in(self, layer: int | None) -> Tried | None:
        start = len(self.tried)
        for group in (fixed(self.config, self.tied), self.late()):
            for fault in group:
                if layer is None or (
                    fault.in_layers and (layer < self.config.n_layers or "rms_norm" in fault.functions)
                ):
                    self.tried.append(Tried(fault, layer, distance(self.errors_of(self.model.run(fault, layer)))))
            best = min(self.tried[start:], key=lambda t: t.distance, default=None)
            if best and best.distance * SURE <= self.right and self.accepted(best):
                return best
        for number in numbers(self.config):
            if layer is None or layer < self.config.n_layers or "rms_norm" in number.make(1.0).functions:
                fault, d = search(number, lambda fault: self.errors_of(self.model.run(fault, layer)), self.right)
                self.tried.append(Tried(fault, layer, d))
                if d * SURE <= self.right and self.accepted(self.tried[-1]):
                    return self.tried[-1]
        best = min(self.tried[start:], key=lambda t: t.distance, default=None)
        return best if best and self.accepted(best) else None

    def late(self) -> Iterable[Fault]:
        """Faults that begin at some position: the first row that differs, or one since the last that does not."""
        rows = np.linalg.norm(self.errors_of(self.model.right), axis=1)  # (rows,)
        limit = max(RTOL["float32"][0], 10 * float(self.rounding), float(rows.min()) * 10)
        over = np.flatnonzero(rows > limit)
        if len(over):
            last = int(self.rows[over[0]])
            first = int(self.rows[over[0] - 1]) + 1 if over[0] else 1
            for row in range(max(1, first - 2, last - 64), last + 1):
                yield from from_row(self.config, row)

    def accepted(self, tried: Tried) -> bool:
        if not tried.distance * NEARER <= self.right:
            return False
        return tried.distance <= max(ROUNDING * self.noise(tried.fault, tried.layer), 1e-7)

    def unknown(self, nearest: list[Tried]) -> tuple[str, list[str]]:
        values = self.model.right.values
        lines = []
        for name, theirs in self.ours.activations.items():
            mine = values[name][self.ours.positions] if name == "norm" else values.get(name)
            if mine is not None and mine.shape == theirs.shape and _differs(mine, theirs, _dtype(self.ours)):
                row = int(np.argmax(_row_errors(mine, theirs) > RTOL[_dtype(self.ours)][1]))
                lines += [f"The first activation that differs is {name}, first at position {row}. {hint(name, row)}"]
                break
        else:
            rows = np.linalg.norm(self.errors_of(self.model.right), axis=1)  # (rows,)
            name = "logits"
            row = int(self.rows[np.argmax(rows > RTOL[_dtype(self.ours)][0])])
            lines += [f"The logits differ first at position {row}. {hint(name, row)}"]
        if nearest:
            t = nearest[0]
            lines.append(
                f"Nearest, not the cause: {t.fault.cause}: {t.fault.what} ({t.distance:.1e}; none {self.right:.1e})."
            )
        return f"unknown: {name} differs first", ["CAUSE: none of the known faults gives these numbers.", *lines]


def _dtype(ours: Reference) -> str:
    return "float32" if ours.dtype == "float64" else ours.dtype  # files hold float32


def _row_errors(mine: Array, theirs: Array) -> Array:
    """(rows,): the relative error of each row."""
    a, b = mine.reshape(len(mine), -1), theirs.reshape(len(theirs), -1).astype(np.float64)
    with np.errstate(all="ignore"):
        return np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-30)


def _differs(mine: Array, theirs: Array, dtype: str) -> bool:
    return bool(np.any(~(_row_errors(mine, theirs) <= RTOL[dtype][1])))
