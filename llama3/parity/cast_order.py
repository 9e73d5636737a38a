"""RMSNorm in bfloat16 or float16: is the weight multiplied after the cast, as transformers does, or before it?

Both orders are right to rounding, so no run in float64 can tell them apart. Here both are run with the rounding of the
other side's dtype. The order that it has gives the same bits nearly everywhere; the other one differs in every norm.
"""

from collections.abc import Iterator

import numpy as np
from numpy import ndarray as Array

from llama3 import plain
from llama3.parity.planted import Fault, PlainModel
from llama3.parity.reference_file import Reference
from llama3.parity.rounding import round_to, rounding_functions, single


def weight_before_cast(dtype: str) -> Fault:
    """RMSNorm that rounds once, after it has multiplied by its weight."""
    what = f"RMSNorm multiplies by its weight before the cast to {dtype}; transformers casts first"

    def rms_norm(x: Array, weight: Array, eps: float) -> Array:
        return round_to(single(plain.rms_norm(x, np.ones(1), eps)) * weight, dtype)

    return Fault("cast_order", what, {"rms_norm": rms_norm})


def from_activations(ours: Reference, model: PlainModel, dtype: str) -> tuple[float, float] | None:
    """How far the other side's norms are from each order, (after, before) the cast, computed from its own inputs.

    None if the file does not hold the input and the result of any norm.
    """
    orders = (rounding_functions(dtype)["rms_norm"], weight_before_cast(dtype).functions["rms_norm"])
    errors = [0.0, 0.0]
    found = False
    for x, result, weight in _norms(ours, model, dtype):
        found = True
        for k, order in enumerate(orders):
            difference = round_to(order(x.astype(np.float64), weight, model.config.norm_eps), dtype) - result
            errors[k] += float(np.sum(difference**2) / max(np.sum(result.astype(np.float64) ** 2), 1e-30))
    return (errors[0] ** 0.5, errors[1] ** 0.5) if found else None


def _norms(ours: Reference, model: PlainModel, dtype: str) -> Iterator[tuple[Array, Array, Array]]:
    """(input, result, weight) of each norm that the file holds."""
    a = ours.activations
    for i, layer in enumerate(model.weights.layers):
        before = a.get(f"layers.{i - 1}" if i else "tok_embeddings")
        middle = a.get(f"layers.{i}.attention_residual")
        if middle is None and before is not None and f"layers.{i}.attention" in a:
            middle = round_to(before + a[f"layers.{i}.attention"], dtype)
        for x, part, weight in ((before, "attention_norm", layer.attention_norm), (middle, "ffn_norm", layer.ffn_norm)):
            if x is not None and f"layers.{i}.{part}" in a:
                yield x, a[f"layers.{i}.{part}"], weight
    last = a.get(f"layers.{model.config.n_layers - 1}")
    if last is not None and "norm" in a:
        yield last[ours.positions], a["norm"], model.weights.norm
