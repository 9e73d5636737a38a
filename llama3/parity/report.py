"""What a comparison found: to be judged by limits, printed for people, or written as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llama3.errors import RequestError
from llama3.parity.measures import TOP
from llama3.parity.reference_file import Reference

# The relative error that is allowed unless the caller names one, by what the reference was computed in: of a row of
# logits, and of a row of an activation. Correct float32 models, which only sum in another order, stay below 6e-6. A
# reference in float16 or bfloat16 is itself off: correct models were seen at 9 unit roundoffs (2^-11, 2^-8) in the
# logits, and at 38 in activations, whose sums cancel. About twice that is allowed.
RTOL = {
    "float64": (1e-5, 1e-5),
    "float32": (1e-5, 1e-5),
    "float16": (20 * 2.0**-11, 64 * 2.0**-11),
    "bfloat16": (20 * 2.0**-8, 64 * 2.0**-8),
}
WIDTH = 100


@dataclass(frozen=True)
class Limits:
    """What still counts as equal."""

    rtol: float | None = None  # relative error of every row, of logits and of activations; None: see RTOL
    max_kl: float | None = None  # nats, at every position
    min_top1: float | None = None  # share of the positions that agree on the most likely token

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < np.inf:
                raise RequestError(f"{name} is {value!r}; expected a number of at least 0")
        if self.min_top1 is not None and self.min_top1 > 1:
            raise RequestError(f"min_top1 is {self.min_top1!r}; expected a share, from 0 to 1")


@dataclass(frozen=True)
class Report:
    reference: Reference
    ours: str  # what was compared with it
    limits: Limits
    logits: np.ndarray  # (n,) measures.LOGITS_ROW, a row for each of the reference's positions
    activations: dict[str, np.ndarray]  # (T,) measures.ROW each, in the order of computation
    config_differences: list[str]  # told, not judged: the numbers decide

    @property
    def rtol(self) -> float:
        return RTOL[self.reference.dtype][0] if self.limits.rtol is None else self.limits.rtol

    @property
    def activation_rtol(self) -> float:
        return RTOL[self.reference.dtype][1] if self.limits.rtol is None else self.limits.rtol

    @property
    def ok(self) -> bool:
        return not self.breaches

    @property
    def first_activation(self) -> str | None:
        """The first one, in the order of computation, with a row over the limit: the fault is in that block."""
        return next((name for name, rows in self.activations.items() if _over(rows, self.activation_rtol).any()), None)

    @property
    def breaches(self) -> list[str]:
        """Every limit that is not kept, a line each."""
        found, rows, positions = [], self.logits, self.reference.positions

        def add(what: str, bad: np.ndarray) -> None:
            if bad.any():
                found.append(f"{what} at {bad.sum()} of {len(bad)} positions, first at {positions[np.argmax(bad)]}")

        nan = ~np.isfinite(rows["max_abs"])
        add("the logits hold NaN or infinity", nan)
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
        """Plain values for JSON; None for what is not finite. docs/parity.md lists the fields."""
        r, rows = self.reference, self.logits
        return {
            "ok": self.ok,
            "breaches": self.breaches,
            "limits": {**asdict(self.limits), "rtol": self.rtol, "activation_rtol": self.activation_rtol},
            "ours": self.ours,
            "reference": {"model": r.model, "producer": r.producer, "dtype": r.dtype, "tokens": len(r.tokens)},
            "config_differences": self.config_differences,
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
        """A table of at most 100 columns."""
        r, rows, measures = self.reference, self.logits, self._measures()
        lines = [
            f"ours       {self.ours}",
            f"reference  {r.model} ({r.producer}, {r.dtype})",
            f"           {len(r.tokens)} tokens, logits at {len(rows)} positions, vocabulary of {r.config.vocab_size}",
            *(f"config     {difference}" for difference in self.config_differences),
            "",
            _heading("logits"),
            _line("relative error", measures["relative"], r.positions, self.rtol),
            _line("NMSE", measures["nmse"], r.positions),
            _line("max abs error", measures["max_abs"], r.positions),
            _line("KL divergence (nats)", measures["kl"], r.positions, self.limits.max_kl),
            f"{'top-1 agreement':<24}{rows['top1'].sum():>12} of {len(rows)}",
            f"{'top-5 agreement':<24}{rows['top5'].sum():>12} of {len(rows) * self._top}",
        ]
        if self.activations:
            lines += ["", _heading("activations")]
        for name, errors in self.activations.items():
            lines.append(_line(name, errors["relative"], self._positions(name), self.activation_rtol))
        if self.ok:
            lines += ["", "equal within the limits"]
        else:
            lines += ["", *self._most_likely(), "", *(f"DIFFERS: {breach}" for breach in self.breaches)]
        return "\n".join(map(_fit, lines))

    def _most_likely(self) -> list[str]:
        """Both sides' first five where the logits are furthest apart."""
        worst = np.argmax(self.logits["relative"])  # a NaN counts as the largest
        row, position = self.logits[worst], self.reference.positions[worst]
        lines = [f"most likely at position {position}, after token {self.reference.tokens[position]} (id: logit)"]
        for side in ("ours", "reference"):
            pairs = [f"{i}: {logit:.5g}" for i, logit in zip(row[side], row[side + "_logits"])]
            lines.append(f"  {side:<11}{'  '.join(pairs[: self._top])}")
        return lines

    def _measures(self) -> dict[str, np.ndarray]:
        """NMSE, the normalised mean square error, is over one row the square of the relative error."""
        relative = self.logits["relative"]
        return {"relative": relative, "nmse": relative**2, "max_abs": self.logits["max_abs"], "kl": self.logits["kl"]}

    def _positions(self, activation: str) -> np.ndarray:
        return self.reference.positions if activation == "norm" else np.arange(len(self.reference.tokens))

    @property
    def _top(self) -> int:
        return min(TOP, self.reference.config.vocab_size)


def _over(rows: np.ndarray, rtol: float) -> np.ndarray:
    return ~(rows["relative"] <= rtol)  # not `>`: a NaN is over any limit


def _fit(line: str) -> str:
    """What a file says of itself may be long, and must not drive the terminal."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _heading(name: str) -> str:
    return f"{name:<24}{'median':>12}{'worst':>12}{'at position':>14}{'limit':>12}"


def _line(name: str, values: np.ndarray, positions: np.ndarray, limit: float | None = None) -> str:
    worst = np.argmax(values)
    text = f"{name:<24}{np.median(values):>12.1e}{values[worst]:>12.1e}{positions[worst]:>14}"
    return text if limit is None else f"{text}{limit:>12.1e}{'' if values[worst] <= limit else '  <--'}"


def _worst(values: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    worst = np.argmax(values)
    return {"value": _number(values[worst]), "position": int(positions[worst])}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
