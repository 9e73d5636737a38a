"""Runs plain.forward with a fault in it: in every layer, or in one alone.

A fault replaces functions of plain.py, values that `forward` shows to its `see` hook, or weights. The module itself is
not changed: a copy of `forward` looks its functions up in another namespace, so threads do not disturb each other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy import ndarray as Array

from llama3 import plain
from llama3.config import ModelConfig
from llama3.model.weights import LayerWeights, Weights
from llama3.parity.rounding import round_to, with_functions

FLOAT64_BYTES = 1 << 31  # weights up to this size are converted to float64 once, larger ones at each use
See = Callable[[str, Array], Any]


@dataclass(frozen=True)
class Fault:
    """One way in which an implementation can be wrong."""

    cause: str  # the word for programs: "rope_theta"
    what: str  # the words for people: "theta is 10,000 instead of 500,000"
    functions: Mapping[str, Callable[..., Array]] = field(default_factory=dict)  # take the place of plain.py's
    # (part, value, seen) -> the value that takes its place, or None. part is "q" for layers.0.q and "" for layers.0;
    # seen holds the earlier parts of the same layer, and of a head's scores and weights only the last.
    see: Callable[[str, Array, Mapping[str, Array]], Array | None] | None = None
    layer: Callable[[LayerWeights], LayerWeights] | None = None  # changes each layer's weights
    output: Callable[[Weights], Array] | None = None  # gives another output matrix
    in_layers: bool = True  # whether the fault can sit in one layer alone


@dataclass(frozen=True)
class Run:
    """What one forward pass gave. `values` holds the activations that were asked for."""

    logits: Array  # (T, vocab_size) float64
    values: dict[str, Array]


class PlainModel:
    """Weights and tokens, run with one fault after another. Residual streams of the right model are kept, so that a
    fault in layer i alone costs only the layers from i on."""

    def __init__(self, config: ModelConfig, weights: Weights, tokens: Sequence[int], names: Sequence[str] = ()):
        """names: the activations to keep of each run."""
        self.config, self.tokens, self.names = config, list(map(int, tokens)), set(names)
        self.functions: dict[str, Callable[..., Array]] = {}
        self.weights = weights
        arrays = [
            weights.tok_embeddings,
            weights.output,
            *(a for layer in weights.layers for a in vars(layer).values()),
        ]
        if 8 * sum(array.size for array in arrays) <= FLOAT64_BYTES:
            self.weights = _float64(weights)
            self.functions["linear"] = lambda x, w: x @ w.T
        self.residuals: dict[int, Array] = {}  # before layer i, (T, dim); n_layers: before the final norm

        def keep(name: str, value: Array) -> None:
            if name == "tok_embeddings":
                self.residuals[0] = value
            elif (place := _place(name))[1] == "" and place[0] is not None:
                self.residuals[place[0] + 1] = value

        self.right = self._forward(None, 0, False, keep)

    def run(self, fault: Fault | None, layer: int | None = None, dtype: str = "float64") -> Run:
        """The model with this fault in every layer (None), in one, or (layer == n_layers) in the final norm alone.

        dtype: in which each operation's result is rounded; the residual stream before `layer` is rounded once.
        """
        return self._forward(fault, layer or 0, layer is not None, dtype=dtype)

    def _forward(
        self, fault: Fault | None, start: int, alone: bool, keep: See | None = None, dtype: str = "float64"
    ) -> Run:
        active, seen, values = fault is not None, dict[str, Array](), dict[str, Array]()

        def see(name: str, value: Array) -> Array | None:
            nonlocal active
            layer, part = _place(name)
            if layer is not None:
                name = f"layers.{layer + start}" + f".{part}" * bool(part)
            other = None
            if active and fault is not None and fault.see is not None:
                other = fault.see(part, value, seen)
            if dtype != "float64":
                other = round_to(value if other is None else other, dtype)
            value = value if other is None else other
            if layer is not None:
                seen[part.split(".")[-1] if part.startswith("heads.") else part] = value
            if layer is not None and part == "":
                active = active and not alone
                seen.clear()
            if name in self.names and not (name == "tok_embeddings" and start):
                values[name] = value
            if keep is not None:
                keep(name, value)
            return other

        functions = self.functions | (_rounding(dtype, self.functions) if dtype != "float64" else {})
        for name, faulty in (fault.functions if fault else {}).items():
            right = functions.get(name, getattr(plain, name))
            functions[name] = lambda *a, faulty=faulty, right=right: (faulty if active else right)(*a)
        forward = with_functions(functions)
        w, tokens = self.weights, self.tokens
        layers = list(w.layers[start:])
        if fault is not None and fault.layer is not None:
            layers[: 1 if alone else None] = map(fault.layer, layers[:1] if alone else layers)
        w = replace(w, layers=layers)
        if fault is not None and fault.output is not None:
            w = replace(w, output=fault.output(self.weights))
        if start:  # the residual stream before this layer takes the place of the embedding
            w, tokens = replace(w, tok_embeddings=self.residuals[start]), list(range(len(tokens)))
        with np.errstate(all="ignore"):
            return Run(forward(tokens, self.config, w, see), values)


def _rounding(dtype: str, functions: Mapping[str, Callable[..., Array]]) -> dict[str, Callable[..., Array]]:
    """Functions of plain.py that round inside, where transformers does. `see` rounds their results."""
    linear: Callable[..., Array] = functions.get("linear", plain.linear)

    def rotate(x: Array, angle: Array) -> Array:
        a, b = np.split(x, 2, axis=-1)  # (T, heads, head_dim / 2)
        cos, sin = (round_to(table, dtype)[:, None] for table in (np.cos(angle), np.sin(angle)))  # (T, 1, head_dim / 2)
        ac, bs, as_, bc = (round_to(product, dtype) for product in (a * cos, b * sin, a * sin, b * cos))
        return np.concatenate([ac - bs, as_ + bc], axis=-1)

    return {
        "linear": lambda x, w: linear(round_to(x, dtype), w),
        "rms_norm": lambda x, w, eps: round_to(plain.rms_norm(x, np.ones(1), eps), dtype) * w.astype(np.float64),
        "rotate": rotate,
        "silu": lambda x: round_to(plain.silu(x), dtype),
    }


def _float64(weights: Weights) -> Weights:
    def convert(array: Array) -> Array:
        return array.astype(np.float64)

    layers = [LayerWeights(**{name: convert(array) for name, array in vars(layer).items()}) for layer in weights.layers]
    embeddings = convert(weights.tok_embeddings)
    output = embeddings if weights.output is weights.tok_embeddings else convert(weights.output)
    return Weights(embeddings, layers, convert(weights.norm), output)


def _place(name: str) -> tuple[int | None, str]:
    """layers.3.q -> (3, "q"); layers.3 -> (3, ""); norm -> (None, "norm")."""
    if not name.startswith("layers."):
        return None, name
    _, layer, *part = name.split(".", 2)
    return int(layer), part[0] if part else ""
