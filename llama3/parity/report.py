"""The result of a comparison: judged by limits, printed as a table, or returned as values for JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llama3.errors import RequestError
from llama3.parity.explanation import Explanation
from llama3.parity.measures import TOP
from llama3.parity.reference_file import Reference

# The default limits of the relative error, by the dtype that the reference was computed in: for a row of logits, and
# for a row of an activation. Correct float32 models differ only in the order of their sums: benchmarks/limits.py found
# at most 7.2e-6. A reference in float16 or bfloat16 is inexact itself. In the worst of 32,000 rows of small models, it
# found errors of 18 unit roundoffs (2^-11, 2^-8) in the logits, and of 36 in activations, where large terms cancel.
RTOL = {
    "float64": (1e-5, 1e-5),
    "float32": (1e-5, 1e-5),
    "float16": (20 * 2.0**-11, 64 * 2.0**-11),
    "bfloat16": (20 * 2.0**-8, 64 * 2.0**-8),
}
WIDTH = 100  # columns of the table


@dataclass(frozen=True)
class Limits:
    """The largest differences that count as equal. Raises RequestError for a limit that is not a number >= 0."""

    rtol: float | None = None  # the largest relative error of any row of logits or activations; None: see RTOL
    max_kl: float | None = None  # the largest KL divergence at any position, in nats; None: no limit
    min_top1: float | None = None  # the smallest share of positions with the same most likely token; None: no limit

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < np.inf:
                raise RequestError(f"{name} is {value!r}; expected a number of at least 0")
        if self.min_top1 is not None and self.min_top1 > 1:
            raise RequestError(f"min_top1 is {self.min_top1!r}; expected a share, from 0 to 1")


@dataclass(frozen=True)
class Report:
    """The errors of each row, the limits, and the verdict."""

    reference: Reference
    ours: str  # a description of what was compared with it
    limits: Limits
    logits: np.ndarray  # (n,) measures.LOGITS_ROW, a row for each of the reference's positions
    activations: dict[str, np.ndarray]  # (T,) measures.ROW each, `norm` (n,), in the order of computation
    config_differences: list[str]  # reported, but not counted as a failure
    explanation: Explanation | None = None  # the fault that makes the difference, if it was sought
    not_compared: Sequence[str] = ()  # activations that one of two files lacks: lines
    quantised: str | None = None  # how the weights of ours are, as `Checkpoint.scheme` describes it

    @property
    def rtol(self) -> float:
        """The limit on the relative error of a row of logits: as given, or the default for the reference's dtype."""
        return RTOL[self.reference.dtype][0] if self.limits.rtol is None else self.limits.rtol

    @property
    def activation_rtol(self) -> float:
        """The same limit for a row of activations."""
        return RTOL[self.reference.dtype][1] if self.limits.rtol is None else self.limits.rtol

    @property
    def ok(self) -> bool:
        """Whether every limit is kept."""
        return not self.breaches

    @property
    def first_activation(self) -> str | None:
        """The first activation, in the order of computation, with a row over the limit. The fault is in that block."""
        return next((name for name, rows in self.activations.items() if _over(rows, self.activation_rtol).any()), None)

    @property
    def breaches(self) -> list[str]:
        """A line for every limit that is exceeded."""
        found, rows, positions = [], self.logits, self.reference.positions

        def add(what: str, bad: np.ndarray) -> None:
            if bad.any():
                found.append(f"{what} at {bad.sum()} of {len(bad)} positions, first at {positions[np.argmax(bad)]}")

        nan = ~np.isfinite(rows["max_abs"])
        theirs = np.zeros(len(nan), bool)
        theirs[nan] = ~np.isfinite(self.reference.logits[nan]).all(axis=1)
        add("the logits of the reference hold NaN or infinity", theirs)
        add("our logits hold NaN or infinity", nan & ~theirs)
        add(f"relative error of the logits over {self.rtol:.1e}", _over(rows, self.rtol) & ~nan)
        if self.limits.max_kl is not None:
            add(f"KL divergence over {self.limits.max_kl:.1e}", ~(rows["kl"] <= self.limits.max_kl) & ~nan)
        if self.limits.min_top1 is not None and (share := rows["top1"].mean()) < self.limits.min_top1:
            found.append(f"top-1 agreement is {share:.2%}, expected {self.limits.min_top1:.2%} or more")
        if name := self.first_activation:
            first = np.argmax(_over(self.activations[name], self.activation_rtol))
            error, position = self.activations[name]["relative"][first], self._positions(name)[first]
            found.append(f"the first activation that differs is {name}, first at position {position} ({error:.1e})")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON, with None for NaN and infinity. docs/parity.md lists the fields."""
        r, rows = self.reference, self.logits
        return {
            "ok": self.ok,
            "breaches": self.breaches,
            "limits": {**asdict(self.limits), "rtol": self.rtol, "activation_rtol": self.activation_rtol},
            "ours": self.ours,
            "quantised": self.quantised,
            "reference": {"model": r.model, "producer": r.producer, "dtype": r.dtype, "tokens": len(r.tokens)},
            "config_differences": self.config_differences,
            "not_compared": list(self.not_compared),
            **({} if self.explanation is None else self.explanation.as_dict()),
            "worst": {name: _worst(values, r.positions) for name, values in self._measures().items()},
            "top1": float(rows["top1"].mean()),
            "top5": float(rows["top5"].mean() / self._top),
            "first_activation": self.first_activation,
            "activations": {
                name: {field: _worst(errors[field], self._positions(name)) for field in ("max_abs", "relative")}
                for name, errors in self.activations.items()
            },
            "positions": {
                "position": r.positions.tolist(),
                **{name: [_number(value) for value in values] for name, values in self._measures().items()},
                "top1": rows["top1"].tolist(),
                "top5": rows["top5"].tolist(),
            },
        }

    def __str__(self) -> str:
        """The report as a table of at most WIDTH columns."""
        r, rows, measures = self.reference, self.logits, self._measures()
        width = max([24, *(len(name) + 1 for name in self.activations)])  # of the column of names
        lines = [
            f"ours       {self.ours}",
            *([f"quantised  {self.quantised}"] if self.quantised else []),
            *_one_or_two(f"reference  {r.model}", f"({r.producer}, {r.dtype})"),
            f"           {len(r.tokens)} tokens, logits at {len(rows)} positions, vocabulary of {r.config.vocab_size}",
            *(f"config     {difference}" for difference in self.config_differences),
            *(f"           {lack}" for lack in self.not_compared),
            "",
            _heading("logits", width),
            _line("relative error", width, measures["relative"], r.positions, self.rtol),
            _line("NMSE", width, measures["nmse"], r.positions),
            _line("max abs error", width, measures["max_abs"], r.positions),
            _line("KL divergence (nats)", width, measures["kl"], r.positions, self.limits.max_kl),
            f"{'top-1 agreement':<{width}}{rows['top1'].sum():>12} of {len(rows)}",
            f"{'top-5 agreement':<{width}}{rows['top5'].sum():>12} of {len(rows) * self._top}",
        ]
        if self.activations:
            lines += ["", _heading("activations", width)]
        for name, errors in self.activations.items():
            lines.append(_line(name, width, errors["relative"], self._positions(name), self.activation_rtol))
        if self.ok:
            lines += ["", "equal within the limits"]
        else:
            lines += ["", *self._most_likely(), "", *(f"DIFFERS: {breach}" for breach in self.breaches)]
        lines = list(map(_fit, lines))
        if self.explanation is not None and self.explanation.lines:
            lines += ["", *self.explanation.wrapped(WIDTH)]
        return "\n".join(lines)

    def _most_likely(self) -> list[str]:
        """The five most likely tokens of ours and of the reference, at the position with the largest error."""
        worst = np.argmax(self.logits["relative"])  # NaN counts as the largest
        row, position = self.logits[worst], self.reference.positions[worst]
        lines = [f"most likely at position {position}, after token {self.reference.tokens[position]} (id: logit)"]
        for side in ("ours", "reference"):
            pairs = [f"{i}: {logit:.5g}" for i, logit in zip(row[side], row[side + "_logits"])]
            lines.append(f"  {side:<11}{'  '.join(pairs[: self._top])}")
        return lines

    def _measures(self) -> dict[str, np.ndarray]:
        """The errors of each row of logits, by name. Over a single row, NMSE is the square of the relative error."""
        relative = self.logits["relative"]
        return {"relative": relative, "nmse": relative**2, "max_abs": self.logits["max_abs"], "kl": self.logits["kl"]}

    def _positions(self, activation: str) -> np.ndarray:
        """The position of each row of an activation."""
        return self.reference.positions if activation == "norm" else np.arange(len(self.reference.tokens))

    @property
    def _top(self) -> int:
        return min(TOP, self.reference.config.vocab_size)


def _over(rows: np.ndarray, rtol: float) -> np.ndarray:
    return ~(rows["relative"] <= rtol)  # not `>`: NaN must be over any limit


def _fit(line: str) -> str:
    """Cut a line, and replace control characters: texts from a file may be long, and could control the terminal."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _one_or_two(name: str, about: str) -> list[str]:
    """Both on one line, or on two if one is too short."""
    line = f"{name} {about}"
    return [line] if len(line) <= WIDTH else [name, f"           {about}"]


def _heading(name: str, width: int) -> str:
    return f"{name:<{width}}{'median':>12}{'worst':>12}{'at position':>14}{'limit':>12}"


def _line(name: str, width: int, values: np.ndarray, positions: np.ndarray, limit: float | None = None) -> str:
    worst = np.argmax(values)
    text = f"{name:<{width}}{np.median(values):>12.1e}{values[worst]:>12.1e}{positions[worst]:>14}"
    return text if limit is None else f"{text}{limit:>12.1e}{'' if values[worst] <= limit else '  <--'}"


def _worst(values: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    worst = np.argmax(values)
    return {"value": _number(values[worst]), "position": int(positions[worst])}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
