"""What is known of a difference: the cause, in words and as values for JSON."""

from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np

from llama3.parity.planted import Fault

NEAREST = 10  # so many of the faults that were tried are shown


@dataclass(frozen=True)
class Tried:
    """One fault and how far from the other side's logits it is: root mean square of the rows' relative errors."""

    fault: Fault
    layer: int | None  # None: in every layer
    distance: float


@dataclass(frozen=True)
class Explanation:
    """Why two implementations differ."""

    cause: str | None  # one of docs/faults.md's words and what it is, "rounding", "unknown: ..."; None: nothing differs
    lines: list[str]  # the same in words
    right: float  # distance of the right model from the other side
    rounding: float  # distance that rounding to the other side's dtype makes
    tried: list[Tried] = field(default_factory=list)  # nearest first

    def __str__(self) -> str:
        return "\n".join(self.wrapped(100))

    def wrapped(self, width: int) -> list[str]:
        """The lines, none wider than this."""
        return [part for line in self.lines for part in wrap(line, width, subsequent_indent="  ")]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `cause`, and `explanation` with the distances behind it."""
        nearest = [
            {"cause": t.fault.cause, "what": t.fault.what, "layer": t.layer, "distance": _finite(t.distance)}
            for t in self.tried[:NEAREST]
        ]
        distances = {"right": _finite(self.right), "rounding": _finite(self.rounding), "nearest": nearest}
        return {"cause": self.cause, "explanation": {"lines": self.lines, **distances}}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
