"""Chooses what multiplies by the weights on the CPU: NumPy, numba's float32 kernels, or AMX tiles.

"auto" takes the fastest that is there. NumPy needs nothing. The others need the extra `numba`, and weights in bfloat16
or in 8 or 4 bits. AMX needs a CPU that has it, too. For a small model NumPy stays: loading the compiled kernels would
take longer than an answer.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from llama3.errors import DeviceError
from llama3.model.compiled.fits import fits, fits_amx_quantised, fits_quantised
from llama3.model.quantised import QuantisedMatrix
from llama3.model.weights import LayerWeights, Weights

MULTIPLES = {"numba": (4, 16), "amx": (32, 32)}  # of these are the rows and the columns of the matrices they take
KINDS = ("auto", "numpy", *MULTIPLES)
ACTIVATIONS = ("float32", "bfloat16")
SMALL = 10**8  # bytes of matrices
NAMES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@dataclass(frozen=True)
class LinearChoice:
    """What multiplies, "numpy", "numba" or "amx", and a clause that says why."""

    kind: str
    why: str
    activations: str = "float32"  # "bfloat16": x is rounded to it before each product; on AMX only

    def __str__(self) -> str:
        rounded = ", activations rounded to bfloat16" if self.activations == "bfloat16" else ""
        return f"{self.kind}{rounded} ({self.why})"


def choose_linear(weights: Weights, linear: str | None = None, activations: str = "float32") -> LinearChoice:
    """linear: one of KINDS; None: the environment variable LLAMA3_LINEAR, or "auto".

    Raises DeviceError if there is no such kind, or if this machine or these weights lack what it needs.
    """
    source, kind = ("linear", linear) if linear else ("LLAMA3_LINEAR", os.environ.get("LLAMA3_LINEAR") or "auto")
    for name, value, expected in ((source, kind, KINDS), ("activations", activations, ACTIVATIONS)):
        if value not in expected:
            raise DeviceError(f"{name} is {value!r}; expected {', '.join(expected[:-1])} or {expected[-1]}")
    if activations == "bfloat16":
        lack = f"{source} is {kind}" if kind in ("numpy", "numba") else missing("amx", weights)
        if lack:
            raise DeviceError(f"activations bfloat16 needs AMX, but {lack}; leave it out for float32")
        return LinearChoice("amx", "activations were set to bfloat16", activations)
    if kind == "auto":
        return fastest(weights)
    if lack := missing(kind, weights):
        raise DeviceError(f"{source} is {kind}, but {lack}; numpy runs everywhere")
    return LinearChoice(kind, f"{source} names it")


def fastest(weights: Weights) -> LinearChoice:
    """AMX if it is there, else numba, else NumPy; `why` says what stood in the way of the faster ones."""
    if sum(w.nbytes for w in matrices(weights)) < SMALL:
        return LinearChoice("numpy", "the model is small")
    if lack := missing("numba", weights):
        return LinearChoice("numpy", lack)
    if lack := missing("amx", weights):
        return LinearChoice("numba", lack)
    return LinearChoice("amx", "this CPU has it")


def missing(kind: str, weights: Weights) -> str | None:
    """A clause that says what a kind lacks on this machine or with these weights; None if it can run."""
    if kind == "numpy":
        return None
    if find_spec("numba") is None:
        return "numba is not installed (pip install 'llama3[numba]')"
    if kind == "amx":
        from llama3.model.compiled import linear_amx

        if lack := linear_amx.missing():
            return lack
    if not any(takes(kind, w) for w in matrices(weights)):
        rows, columns = MULTIPLES[kind]
        return (
            f"no matrix fits: bfloat16 in multiples of {rows} rows and {columns} columns, or 8 or 4 bits in multiples "
            f"of {rows} rows and {columns} or 128 columns"
        )
    return None


def takes(kind: str, w: np.ndarray | QuantisedMatrix) -> bool:
    """Whether the kernels of a kind multiply by this matrix."""
    if isinstance(w, QuantisedMatrix):
        return fits_amx_quantised(w) if kind == "amx" else fits_quantised(w)
    return fits(w, *MULTIPLES[kind])


def matrices(weights: Weights) -> Iterator[np.ndarray | QuantisedMatrix]:
    for layer in weights.layers:
        yield from (getattr(layer, name) for name in NAMES)
    yield weights.output


def prepare(weights: Weights, choice: LinearChoice) -> Weights:
    """The same weights, with each matrix that the chosen kind takes in a class that multiplies by it.

    With AMX, numba's loops multiply by quantised matrices that AMX does not take. Matrices of another dtype or shape
    stay as they are, as do the embedding and the norms.
    """
    if choice.kind == "numpy":
        return weights
    wrap = partial(wrapped, choice)

    def wrapped_layer(layer: LayerWeights) -> LayerWeights:
        return replace(layer, **{name: wrap(getattr(layer, name)) for name in NAMES})

    return replace(weights, layers=[wrapped_layer(layer) for layer in weights.layers], output=wrap(weights.output))


def wrapped(choice: LinearChoice, w: np.ndarray | QuantisedMatrix) -> Any:
    """A matrix in the class that multiplies by it, or as it is."""
    parts = 3 if choice.activations == "float32" else 1
    if isinstance(w, QuantisedMatrix):
        if choice.kind == "amx" and takes("amx", w):
            from llama3.model.compiled.linear_amx_quantised import AmxQuantisedMatrix

            return AmxQuantisedMatrix(w, parts)
        if takes("numba", w):
            from llama3.model.compiled.linear_quantised import NumbaQuantisedMatrix

            return NumbaQuantisedMatrix(w)
        return w
    if not takes(choice.kind, w):
        return w
    if choice.kind == "numba":
        from llama3.model.compiled.linear_numba import NumbaMatrix

        return NumbaMatrix(w)
    from llama3.model.compiled.linear_amx import AmxMatrix

    return AmxMatrix(w, parts)
