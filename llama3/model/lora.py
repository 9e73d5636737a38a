"""LoRA: an adapter adds the product of two thin matrices to a matrix W, y = W x + scale * B (A x) (Hu et al. 2021).

The sum W + scale * B A is never computed, so all requests share W, and each row of a batch may use its own adapter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llama3.model.batch import Batch
from llama3.model.linear import Matrix, linear
from llama3.model.summed import SummedMatrix
from llama3.model.weights import LayerWeights


@dataclass(frozen=True)
class LoraPair:
    a: np.ndarray  # (rank, n_in) float32
    b: np.ndarray  # (n_out, rank) float32, already multiplied by the scale


Adapter = Sequence[Mapping[str, LoraPair]]  # for each layer the matrices that it changes, by name: "wq", "w2"


@dataclass(frozen=True)
class LoraMatrix:
    """A weight matrix with the adapters of one batch. `linear` accepts it like any other matrix."""

    w: np.ndarray | Matrix  # (n_out, n_in)
    parts: list[tuple[np.ndarray, LoraPair]]  # indices of rows, and the pair that is added to their products

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in) -> (T, n_out) float32"""
        out = linear(x, self.w)
        for rows, pair in self.parts:
            out[rows] += linear(linear(x[rows], pair.a), pair.b)
        return out


def with_adapters(layers: list[LayerWeights], batch: Batch, adapters: Mapping[str, Adapter]) -> Sequence[LayerWeights]:
    """The layers with this batch's adapters added. If no sequence has an adapter, `layers` itself is returned."""
    adapter_rows = rows_by_adapter(batch)
    if not adapter_rows:
        return layers
    out = []
    for i, layer in enumerate(layers):
        parts: dict[str, list[tuple[np.ndarray, LoraPair]]] = {}
        for name, rows in adapter_rows.items():
            for matrix, pair in adapters[name][i].items():
                parts.setdefault(matrix, []).append((rows, pair))
        changed: dict[str, Any] = {matrix: adapted(getattr(layer, matrix), parts[matrix]) for matrix in parts}
        out.append(replace(layer, **changed))
    return out


def adapted(w: np.ndarray | Matrix, parts: list[tuple[np.ndarray, LoraPair]]) -> Matrix:
    """A matrix with adapters. If processes add up its product, each adds its part of the adapters before that."""
    return replace(w, w=LoraMatrix(w.w, parts)) if isinstance(w, SummedMatrix) else LoraMatrix(w, parts)


def rows_by_adapter(batch: Batch) -> dict[str, np.ndarray]:
    """For each adapter of the batch, the indices of its rows."""
    spans: dict[str, list[np.ndarray]] = {}
    for name, span in zip(batch.adapters, batch.spans):
        if name is not None:
            spans.setdefault(name, []).append(np.arange(span.start, span.stop))
    return {name: np.concatenate(rows) for name, rows in spans.items()}
