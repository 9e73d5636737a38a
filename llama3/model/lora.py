"""LoRA: an adapter adds to a matrix W the product of two thin ones, y = W x + scale * B (A x) (Hu et al. 2021).

The sum W + scale * B A is never formed. So W is shared, and the rows of one batch may have different adapters, or none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llama3.model.batch import Batch
from llama3.model.linear import linear

if TYPE_CHECKING:
    from llama3.model.weights import LayerWeights


@dataclass(frozen=True)
class LowRank:
    a: np.ndarray  # (rank, in) float32
    b: np.ndarray  # (out, rank) float32, already times the scale


Adapter = Sequence[Mapping[str, LowRank]]  # of each layer the matrices that it changes, by their names: "wq", "w2"


@dataclass(frozen=True)
class Adapted:
    """A matrix as it is for the rows of one batch. `linear` takes it like any other."""

    w: np.ndarray  # (out, in)
    parts: list[tuple[np.ndarray, LowRank]]  # some of the rows, and what is added to their products

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, in) -> (T, out) float32"""
        out = linear(x, self.w)
        for rows, low_rank in self.parts:
            out[rows] += linear(linear(x[rows], low_rank.a), low_rank.b)
        return out


def adapted(layers: list["LayerWeights"], batch: Batch, adapters: Mapping[str, Adapter]) -> Sequence["LayerWeights"]:
    """The layers with the adapters of this batch in them; without any, the very layers that were given."""
    rows_of = rows_by_adapter(batch)
    if not rows_of:
        return layers
    out = []
    for i, layer in enumerate(layers):
        changed: dict[str, Any] = {}
        for name, rows in rows_of.items():
            for matrix, low_rank in adapters[name][i].items():
                changed.setdefault(matrix, Adapted(getattr(layer, matrix), [])).parts.append((rows, low_rank))
        out.append(replace(layer, **changed))
    return out


def rows_by_adapter(batch: Batch) -> dict[str, np.ndarray]:
    """Of each adapter of the batch, the rows that it is for."""
    spans: dict[str, list[np.ndarray]] = {}
    for name, span in zip(batch.adapters, batch.spans):
        if name is not None:
            spans.setdefault(name, []).append(np.arange(span.start, span.stop))
    return {name: np.concatenate(rows) for name, rows in spans.items()}
