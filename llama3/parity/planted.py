"""Runs plain.forward with a fault in it: in every layer, or in one alone.

A fault replaces functions of plain.py, values that `forward` shows to its `see` hook, or weights. The module itself is
not changed: a copy of `forward` looks its functions up in another namespace, so threads do not disturb each other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from llama3 import plain
from llama3.config import ModelConfig
from llama3.model.weights import LayerWeights, Weights
from llama3.parity import rounding

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
    tokens: Callable[[list[int]], list[int]] | None = None  # gives other tokens
    shift: int = 0  # with `tokens`: row p of the other side's logits is row p + shift for these tokens
    in_layers: bool = True  # whether the fault can sit in one layer alone


@dataclass(frozen=True)
class Run:
    """What one forward pass gave. `values` holds the activations that were asked for."""

    logits: Array  # (T, vocab_size) float64
    given: Array  # (T,) bool: which rows there are; with other tokens, the first or the last may be missing
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

    def run(self, fault: Fault | None, layer: int | None = None, dtype: str = "float64", fused: bool = False) -> Run:
        """The model with this fault in every layer (None), in one, or (layer == n_layers) in the final norm alone.

        dtype: in which each operation's result is rounded; the residual stream before `layer` is rounded once.
        fused: see rounding.py.
        """
        return self._forward(fault, layer or 0, layer is not None, dtype=dtype, fused=fused)

    def _forward(
        self,
        fault: Fault | None,
        start: int,
        alone: bool,
        keep: See | None = None,
        dtype: str = "float64",
        fused: bool = False,
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

        functions = self._functions(dtype, fused)
        for name, faulty in (fault.functions if fault else {}).items():
            right = functions.get(name, getattr(plain, name))
            functions[name] = lambda *a, faulty=faulty, right=right: (faulty if active else right)(*a)
        forward = rounding.with_functions(functions)
        if dtype != "float64":
            forward = partial(rounding.forward, dtype=dtype, functions=functions, fused=fused)
        w, tokens = self._weights(fault, start, alone), self.tokens
        if start:  # the residual stream before this layer takes the place of the embedding
            w, tokens = replace(w, tok_embeddings=self.residuals[start]), list(range(len(tokens)))
        if fault is not None and fault.tokens is not None:
            tokens = fault.tokens(tokens)
        with np.errstate(all="ignore"):
            logits = forward(tokens, self.config, w, see)
        if fault is not None and fault.tokens is not None:
            return Run(*_shifted(logits, fault.shift, len(self.tokens)), {})
        return Run(logits, np.ones(len(tokens), bool), values)

    def _functions(self, dtype: str, fused: bool) -> dict[str, Callable[..., Array]]:
        """What takes the place of plain.py's functions in a run without a fault."""
        if dtype == "float64":
            return dict(self.functions)
        functions = rounding.rounding_functions(dtype, fused=fused)
        if dtype == "float32":
            functions["rope_angles"] = plain.rope_angles  # float32 angles are a fault with a name, rope_angles
        return functions

    def _weights(self, fault: Fault | None, start: int, alone: bool) -> Weights:
        """The weights from layer `start` on, with what the fault changes in them."""
        layers = list(self.weights.layers[start:])
        if fault is not None and fault.layer is not None:
            layers[: 1 if alone else None] = map(fault.layer, layers[:1] if alone else layers)
        output = self.weights.output if fault is None or fault.output is None else fault.output(self.weights)
        return replace(self.weights, layers=layers, output=output)


def _shifted(rows: Array, shift: int, length: int) -> tuple[Array, Array]:
    """(length, vocab_size) and (length,) bool: row p + shift at p, and where there is one."""
    sources = np.arange(length) + shift  # (length,)
    given = (sources >= 0) & (sources < len(rows))  # (length,)
    return rows[np.clip(sources, 0, len(rows) - 1)], given


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
