"""plain.forward in bfloat16, float16 or float32: each result is rounded, where and how transformers rounds it on a CPU.

PyTorch keeps the result of each operation in the model's dtype, and adds up the terms of a product in float32. So:
- a value is rounded after each operation, a product after its sum;
- RMSNorm and softmax are computed in float32 and rounded at their end, but RMSNorm before it multiplies by its weight;
- RoPE's angles are float32; cosine and sine are rounded before they are used;
- with "eager" attention, scores are rounded twice: after q k^T, and after the division by sqrt(head_dim);
- with "sdpa", transformers' default, neither scores nor weights are rounded: see rounding_sdpa.py.
`fused` rounds less often, as fused kernels do: scores, softmax and silu(gate) * up stay in float32 up to their end.

Sums are added in the order of torch_sums.py, which is that of a processor with AVX-512 and without instructions for
bfloat16. On another processor, or with another number of rows at a time, transformers adds in another order and gets
other last bits. Some layers later, its logits are about half as far from these as float32's are, or farther:
docs/parity.md has numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray as Array

from llama3 import plain
from llama3.config import ModelConfig
from llama3.model.rope import rope_angles_float32
from llama3.model.weights import Weights
from llama3.parity import rounding_sdpa
from llama3.parity.torch_sums import lane_sum, product, row_sum

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
ATTENTION = ("eager", "sdpa")  # transformers' names


def forward(
    tokens: Sequence[int],
    config: ModelConfig,
    weights: Weights,
    see: Callable[[str, Array], Any] | None = None,
    dtype: str = "bfloat16",
    attention: str = "eager",
    functions: Mapping[str, Callable[..., Array]] | None = None,
    fused: bool = False,
) -> Array:
    """`plain.forward` with each result rounded to `dtype`, one of DTYPES -> logits (T, vocab_size) float64.

    attention: one of ATTENTION. With "sdpa", a head's scores and weights are shown to `see`, and not used.
    functions: what to use in place of `rounding_functions(dtype, attention, fused)`. What `see` returns is rounded too.
    """
    to_dtype = partial(round_to, dtype=dtype)
    seen: dict[str, Array] = {}  # what the output of a head is made of
    group = config.n_heads // config.n_kv_heads

    def round_and_see(name: str, value: Array) -> Array:
        *_, head, part = (0, 0, *name.split("."))
        if part == "output":  # plain.forward adds it up in float64
            q, (k, v) = seen["q_rope"][:, int(head)], (seen[name][:, int(head) // group] for name in ("k_rope", "v"))
            sdpa = attention == "sdpa"
            value = rounding_sdpa.attend(q, k, v, to_dtype) if sdpa else product(seen["weights"], v.T)
        kept_in = "float32" if part in ("scores", "weights") and (fused or attention == "sdpa") else dtype
        value = round_to(value, kept_in)
        other = see(name, value) if see else None
        value = value if other is None else round_to(other, kept_in)
        if part in ("q_rope", "k_rope", "v", "weights"):
            seen[str(part)] = value
        return value

    functions = functions or rounding_functions(dtype, attention, fused)
    return with_functions(functions)(tokens, config, weights, round_and_see)


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


def rounding_functions(dtype: str, attention: str = "eager", fused: bool = False) -> dict[str, Callable[..., Array]]:
    """Functions for plain.py that round in between. `forward` rounds what they return."""

    def rounded(x: Array) -> Array:
        return round_to(x, dtype)

    def unless_fused(x: Array) -> Array:
        return round_to(x, "float32" if fused else dtype)

    def linear(x: Array, w: Array) -> Array:
        return product(rounded(x), rounded(w))  # x is rounded already, unless it is silu(gate) * up

    def rms_norm(x: Array, weight: Array, eps: float) -> Array:
        mean = row_sum((x**2).astype(np.float32)) / np.float32(x.shape[1])  # (T, 1) float32
        root = 1 / np.sqrt(mean + np.float32(eps))
        return rounded(single(x * root)) * rounded(weight)

    def rope_angles(positions: Array, config: ModelConfig) -> Array:
        return rope_angles_float32(config, len(positions))

    def rotate(x: Array, angle: Array) -> Array:
        a, b = np.split(x, 2, axis=-1)  # (T, heads, head_dim / 2)
        cos, sin = rounded(np.cos(angle))[:, None], rounded(np.sin(angle))[:, None]  # (T, 1, head_dim / 2)
        first = rounded(a * cos) - rounded(b * sin)  # (T, heads, head_dim / 2)
        return np.concatenate([first, rounded(b * cos) + rounded(a * sin)], axis=-1)

    def attention_scores(q: Array, k: Array) -> Array:
        future = np.isneginf(plain.attention_scores(q * 0, k * 0))  # (T, T)
        scores = product(q, k) if attention == "sdpa" else unless_fused(product(q, k))
        return np.where(future, -np.inf, single(scores * single(np.array(q.shape[1] ** -0.5))))

    def softmax(x: Array) -> Array:
        e = single(np.exp(single(x - x.max(axis=-1, keepdims=True)))).astype(np.float32)
        return (e * (1 / lane_sum(e))).astype(np.float64)

    def silu(x: Array) -> Array:
        with np.errstate(over="ignore"):
            return unless_fused(single(x / single(1 + single(np.exp(-x)))))

    functions = (linear, rms_norm, rope_angles, rotate, attention_scores, softmax, silu)
    return {function.__name__: function for function in functions}
