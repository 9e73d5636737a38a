"""plain.forward in bfloat16, float16 or float32: each result is rounded, where and how transformers rounds it on a CPU.

PyTorch keeps the result of each operation in the model's dtype, and adds up the terms of a product in float32. So:
- a value is rounded after each operation, a product after its sum;
- RMSNorm and softmax are computed in float32 and rounded at their end, but RMSNorm before it multiplies by its weight;
- RoPE's angles are float32; cosine and sine are rounded before they are used;
- scores are rounded twice: after q k^T, and after the division by sqrt(head_dim) ("eager" attention; "sdpa" keeps them
  in float32, in blocks, in an order that depends on the machine).
`fused` rounds less often, as fused kernels do: scores, softmax and silu(gate) * up stay in float32 up to their end.
"""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray as Array

from llama3 import plain
from llama3.config import ModelConfig
from llama3.model.rope import rope_angles_float32
from llama3.model.weights import Weights

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
BLOCK = 768  # terms of a product that oneDNN, PyTorch's library on CPUs, adds up before it adds the sum to the result
SMALL = 1 << 27  # multiplications; a product of more is left to BLAS, whose order is another


def forward(
    tokens: Sequence[int],
    config: ModelConfig,
    weights: Weights,
    see: Callable[[str, Array], Any] | None = None,
    dtype: str = "bfloat16",
    functions: Mapping[str, Callable[..., Array]] | None = None,
    fused: bool = False,
) -> Array:
    """`plain.forward` with each result rounded to `dtype`, one of DTYPES -> logits (T, vocab_size) float64.

    functions: what to use in place of `rounding_functions(dtype, fused)`. What `see` returns is rounded too.
    """
    seen: dict[str, Array] = {}  # what the output of a head is made of
    group = config.n_heads // config.n_kv_heads

    def round_and_see(name: str, value: Array) -> Array:
        *_, head, part = (0, 0, *name.split("."))
        if part == "output":  # plain.forward adds it up in float64
            value = product(seen["weights"], seen["v"][:, int(head) // group].T)
        kept_in = "float32" if fused and part in ("scores", "weights") else dtype
        value = round_to(value, kept_in)
        other = see(name, value) if see else None
        value = value if other is None else round_to(other, kept_in)
        if part in ("v", "weights"):
            seen[str(part)] = value
        return value

    return with_functions(functions or rounding_functions(dtype, fused))(tokens, config, weights, round_and_see)


def with_functions(functions: Mapping[str, Callable[..., Array]]) -> Callable[..., Array]:
    """A copy of `plain.forward` that calls these functions in place of plain.py's. The module stays as it is."""
    return FunctionType(plain.forward.__code__, vars(plain) | dict(functions), "forward", plain.forward.__defaults__)


def round_to(x: Array, dtype: str) -> Array:
    """x rounded to the nearest numbers of a dtype, as float64. What is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(DTYPES[dtype]).astype(np.float64)


def single(x: Array) -> Array:
    """x rounded to float32, as float64."""
    return round_to(x, "float32")


def rounding_functions(dtype: str, fused: bool = False) -> dict[str, Callable[..., Array]]:
    """Functions for plain.py that round in between. `forward` rounds what they return."""

    def rounded(x: Array) -> Array:
        return round_to(x, dtype)

    def unless_fused(x: Array) -> Array:
        return round_to(x, "float32" if fused else dtype)

    def linear(x: Array, w: Array) -> Array:
        return product(rounded(x), rounded(w))  # x is rounded already, unless it is silu(gate) * up

    def rms_norm(x: Array, weight: Array, eps: float) -> Array:
        mean = single(single(x**2).mean(axis=-1, keepdims=True))
        return rounded(single(x * single(1 / np.sqrt(single(mean + single(np.array(eps))))))) * rounded(weight)

    def rope_angles(positions: Array, config: ModelConfig) -> Array:
        return rope_angles_float32(config, len(positions))

    def rotate(x: Array, angle: Array) -> Array:
        a, b = np.split(x, 2, axis=-1)  # (T, heads, head_dim / 2)
        cos, sin = rounded(np.cos(angle))[:, None], rounded(np.sin(angle))[:, None]  # (T, 1, head_dim / 2)
        first = rounded(a * cos) - rounded(b * sin)  # (T, heads, head_dim / 2)
        return np.concatenate([first, rounded(b * cos) + rounded(a * sin)], axis=-1)

    def attention_scores(q: Array, k: Array) -> Array:
        future = np.isneginf(plain.attention_scores(q * 0, k * 0))  # (T, T)
        scale = single(np.array(q.shape[1] ** -0.5))
        return np.where(future, -np.inf, unless_fused(product(q, k)) * scale)

    def softmax(x: Array) -> Array:
        e = single(np.exp(single(x - x.max(axis=-1, keepdims=True))))
        return single(e / single(e.sum(axis=-1, keepdims=True)))

    def silu(x: Array) -> Array:
        with np.errstate(over="ignore"):
            return unless_fused(single(x / single(1 + single(np.exp(-x)))))

    functions = (linear, rms_norm, rope_angles, rotate, attention_scores, softmax, silu)
    return {function.__name__: function for function in functions}


def product(x: Array, w: Array) -> Array:
    """x (n, width) @ w (m, width).T, added up in float32 -> (n, m) float64.

    The order is oneDNN's for bfloat16, that of Intel's instruction VDPBF16PS: term after term, but of two neighbours
    the second one first; the sum of each BLOCK terms is then added to the result.
    """
    a, b = (np.asarray(m, np.float32) for m in (x, w))
    total = np.zeros((len(a), len(b)), np.float32)
    for begin in range(0, a.shape[1], BLOCK):
        columns = slice(begin, begin + BLOCK)
        total += _block(a[:, columns], b[:, columns]) if a.size * len(b) <= SMALL else a[:, columns] @ b[:, columns].T
    return total.astype(np.float64)


def _block(a: Array, b: Array) -> Array:
    """a (n, width) @ b (m, width).T, float32, term after term."""
    width = a.shape[1]
    order = np.arange(width) ^ 1  # 1, 0, 3, 2, ...
    order = order[order < width] if width % 2 == 0 else np.append(np.arange(width - 1) ^ 1, width - 1)
    columns_a, columns_b = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    total, term = np.zeros((len(a), len(b)), np.float32), np.empty((len(a), len(b)), np.float32)
    for k in order:
        np.multiply(columns_a[k][:, None], columns_b[k], out=term)
        total += term
    return total
