"""Plants one known fault after another, and keeps how far each is from the other side's numbers."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy import ndarray as Array

from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.weights import Weights
from llama3.parity import cast_order
from llama3.parity.explanation import Tried
from llama3.parity.faults import fixed, float32_angles, from_row, numbers
from llama3.parity.hidden_bos import hidden_bos
from llama3.parity.other_output import another_output, unexplained
from llama3.parity.planted import Fault, PlainModel, Run
from llama3.parity.reference_file import Reference
from llama3.parity.report import RTOL
from llama3.parity.search import distance, search

NEARER = 3.0  # a fault must bring the numbers nearer by this factor
ROUNDING = 6.0  # and leave no more than this many times the difference that rounding makes in our own run
SURE = 100.0  # nearer by so much and to within rounding, no other fault is tried
AS_NEAR = 2.0  # of faults within this factor of the nearest one, the first in the list is named: it is the simplest
CAST_NEARER = 2.0  # an order of the cast must bring the numbers nearer by this factor, or in nearly every of many rows
CAST_NEARER_IN_MOST_ROWS, MOST, MANY_ROWS = 1.4, 0.9, 16  # by this factor; in this share of the rows; of so many rows
CAST_NEARER_FROM_OWN_INPUT = 4.0  # the factor where each norm is computed from the other side's own input


class Trials:
    """ours: the other side's numbers; config, weights: of the right model; bos: the id of <|begin_of_text|>."""

    def __init__(self, ours: Reference, config: ModelConfig, weights: Weights, bos: int | None = None):
        self.ours, self.config, self.bos = ours, config, bos
        self.dtype = dtype_of(ours)
        finite = np.isfinite(ours.logits).all(axis=1)  # (n,)
        if not finite.any():
            raise CheckpointError("none of the logits is finite; expected numbers, to see which fault makes them")
        self.rows = ours.positions[finite]  # positions of the logits that are compared
        self.not_finite = ours.positions[~finite]  # those of rows with NaN or infinity
        self.logits = ours.logits[finite].astype(np.float64)  # (rows, vocab_size)
        self.size = np.maximum(np.linalg.norm(self.logits, axis=1, keepdims=True), 1e-30)  # (rows, 1)
        self.model = PlainModel(config, weights, ours.tokens.tolist(), [*ours.activations, "norm"])
        self.tied = weights.output is weights.tok_embeddings or config.tied_embeddings
        self.tried: list[Tried] = []
        self.right = distance(self.errors_of(self.model.right))

    def errors_of(self, run: Run) -> Array:
        """(rows, vocab_size): each row's difference from the other side, relative to that row's size."""
        return self._relative(run, run.logits[self.rows] - self.logits)

    def _relative(self, run: Run, difference: Array) -> Array:
        return (difference / self.size)[run.given[self.rows]]

    def noise(self, fault: Fault | None, layer: int | None) -> float:
        """How far rounding to the other side's dtype moves this run."""
        exact, inexact = self.model.run(fault, layer), self.model.run(fault, layer, self.dtype)
        return distance(self._relative(exact, (exact.logits - inexact.logits)[self.rows]))

    @cached_property
    def rounding(self) -> float:
        return self.noise(None, None)

    @property
    def same(self) -> bool:
        """Whether rounding alone explains the difference."""
        return self.right <= max(ROUNDING * self.rounding, RTOL[self.dtype][0])

    def best(self) -> Tried | None:
        """The fault that reproduces the other side's numbers, sought in every layer, then in single layers."""
        found = self.best_in(None)
        if self.same:
            return found or self.cast_order()
        for layer in self.layers():
            found = found or self.best_in(layer)
        return found

    def best_in(self, layer: int | None) -> Tried | None:
        """The same among the faults that sit in this layer alone, or (None) in every layer."""
        start = len(self.tried)
        for group, nearer in ((self.angles(), NEARER), (self.fixed(), SURE), (self.late(), SURE)):
            for fault in group:
                if layer is None or self.fits(fault, layer):
                    self.tried.append(Tried(fault, layer, distance(self.errors_of(self.model.run(fault, layer)))))
            if found := self.named(self.tried[start:], nearer):
                return found
        if layer is None and not self.same and (found := self.another_output()):
            return found
        for number in numbers(self.config):
            if layer is None or self.fits(number.make(1.0), layer):
                fault, d = search(number, lambda fault: self.errors_of(self.model.run(fault, layer)), len(self.rows))
                self.tried.append(Tried(fault, layer, d))
                if found := self.named(self.tried[-1:], SURE):
                    return found
        return self.named(self.tried[start:], NEARER)

    def angles(self) -> Iterable[Fault]:
        return [float32_angles(self.config)]

    def fixed(self) -> Iterable[Fault]:
        yield from fixed(self.config, self.tied)
        yield from hidden_bos(self.model.tokens, self.bos)

    def fits(self, fault: Fault, layer: int) -> bool:
        """Whether the fault can sit in this layer alone; n_layers stands for the final norm."""
        return fault.in_layers and (layer < self.config.n_layers or "rms_norm" in fault.functions)

    def late(self) -> Iterable[Fault]:
        """Faults that begin at some position. It lies behind the last right row, up to the first row that differs."""
        rows = np.linalg.norm(self.errors_of(self.model.right), axis=1)  # (rows,)
        limit = max(RTOL["float32"][0], 10 * float(self.rounding), float(rows.min()) * 10)
        over = np.flatnonzero(rows > limit)
        if len(over):
            last = int(self.rows[over[0]])
            first = int(self.rows[over[0] - 1]) + 1 if over[0] else 1
            for row in range(max(1, first - 2, last - 64), last + 1):
                yield from from_row(self.config, row)

    def named(self, tried: list[Tried], nearer: float) -> Tried | None:
        """The first of these that brings the numbers nearer by this factor, and to within rounding.

        Faults that are clearly farther than the nearest are left out.
        """
        smallest = min((t.distance for t in tried), default=np.inf)
        near = (t for t in tried if t.distance <= AS_NEAR * smallest and t.distance * nearer <= self.right)
        return next((t for t in near if t.distance <= max(ROUNDING * self.noise(t.fault, t.layer), 1e-7)), None)

    def layers(self) -> list[int]:
        """The layers where a fault may sit alone: the first whose output differs, or all if no output is known."""
        for i in range(self.config.n_layers):
            if (theirs := self.ours.activations.get(f"layers.{i}")) is None:
                return list(range(self.config.n_layers + 1))
            if differs(self.model.right.values[f"layers.{i}"], theirs, self.dtype):
                return [i]
        return [self.config.n_layers]

    def another_output(self) -> Tried | None:
        """Another output matrix: the final norm is right, or some matrix explains the logits."""
        fault, norm = another_output(self.tied), self.model.right.values["norm"]
        theirs = self.ours.activations.get("norm")
        if theirs is not None and not differs(norm[self.ours.positions], theirs, self.dtype):
            return Tried(fault, None, 0.0)
        left = unexplained(norm[self.rows], self.logits)
        if left is None:
            return None
        self.tried.append(Tried(fault, None, distance(left / self.size)))
        own_size = np.linalg.norm(self.model.right.logits[self.rows], axis=1, keepdims=True)  # (rows, 1)
        rounding = self.rounding * float(np.median(self.size / own_size))  # the other matrix may be much larger
        d = self.tried[-1].distance
        return self.tried[-1] if d * NEARER <= self.right and d <= max(ROUNDING * rounding, 1e-7) else None

    def cast_order(self) -> Tried | None:
        """The other order of RMSNorm's cast and weight, if that gives the numbers clearly better."""
        if self.dtype == "float32":
            return None
        fault = cast_order.weight_before_cast(self.dtype)
        if found := cast_order.from_activations(self.ours, self.model, self.dtype):
            after, before = found
            named = before * CAST_NEARER_FROM_OWN_INPUT <= after
        else:
            rows_after, rows_before = self.rounded_rows(None), self.rounded_rows(fault)  # (rows, vocab_size)
            after, before = distance(rows_after), distance(rows_before)
            share = np.mean(np.linalg.norm(rows_before, axis=1) < np.linalg.norm(rows_after, axis=1))
            most = len(rows_after) >= MANY_ROWS and share >= MOST
            named = before * (CAST_NEARER_IN_MOST_ROWS if most else CAST_NEARER) <= after
        self.tried.append(Tried(fault, None, before))
        return self.tried[-1] if named else None

    def rounded_rows(self, fault: Fault | None) -> Array:
        """The errors of a run in the other side's dtype, by the nearer of the ways to round (rounding.py)."""
        runs = (self.errors_of(self.model.run(fault, None, self.dtype, fused)) for fused in (False, True))
        return min(runs, key=distance)


def dtype_of(ours: Reference) -> str:
    return "float32" if ours.dtype == "float64" else ours.dtype  # files hold float32


def row_errors(mine: Array, theirs: Array) -> Array:
    """(rows,): the relative error of each row."""
    a, b = mine.reshape(len(mine), -1), theirs.reshape(len(theirs), -1).astype(np.float64)
    with np.errstate(all="ignore"):
        return np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-30)


def differs(mine: Array, theirs: Array, dtype: str) -> bool:
    return bool(np.any(~(row_errors(mine, theirs) <= RTOL[dtype][1])))
