"""Llama 3 as a textbook would write it: bytes to tokens, tokens to logits, logits to the next token.

Nothing here is fast: no KV cache, no batch, all arithmetic in float64. Tests hold the fast versions (byte_pair.py,
model/, sampler.py) to this file. docs/examples/minimal_generator.py is the step between the two.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy import ndarray as Array

from llama3.config import ModelConfig
from llama3.model.weights import Weights
from llama3.sampling_params import SamplingParams


def merge(chunk: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Byte-pair encoding (Sennrich 2016): join the pair that forms the token of lowest rank, leftmost first; repeat."""
    parts = [bytes([byte]) for byte in chunk]
    while pairs := [(ranks[parts[i] + b], i) for i, b in enumerate(parts[1:]) if parts[i] + b in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def forward(tokens: Sequence[int], config: ModelConfig, weights: Weights, see: Callable | None = None) -> Array:
    """T token ids -> logits (T, vocab_size) float64; row i predicts token i + 1. see(name, value) gets each result."""

    def note(name: str, value: Array) -> Array:
        other = see(name, value) if see else None  # an array that `see` returns takes the value's place
        return value if other is None else other

    c, T, group = config, len(tokens), config.n_heads // config.n_kv_heads
    angle = rope_angles(np.arange(T), c)  # (T, head_dim / 2)
    x = note("tok_embeddings", weights.tok_embeddings[np.array(tokens)].astype(np.float64))  # (T, dim): residual
    for i, layer in enumerate(weights.layers):
        at = f"layers.{i}"
        h = note(f"{at}.attention_norm", rms_norm(x, layer.attention_norm, c.norm_eps))  # (T, dim)
        q = note(f"{at}.q", linear(h, layer.wq).reshape(T, c.n_heads, c.head_dim))  # (T, n_heads, head_dim)
        k = note(f"{at}.k", linear(h, layer.wk).reshape(T, c.n_kv_heads, c.head_dim))  # (T, n_kv_heads, head_dim)
        v = note(f"{at}.v", linear(h, layer.wv).reshape(T, c.n_kv_heads, c.head_dim))  # (T, n_kv_heads, head_dim)
        q = note(f"{at}.q_rope", rotate(q, angle))  # (T, n_heads, head_dim)
        k = note(f"{at}.k_rope", rotate(k, angle))  # (T, n_kv_heads, head_dim)
        heads = []
        for j in range(c.n_heads):  # `group` query heads share a key head and a value head (Ainslie 2023)
            scores = note(f"{at}.heads.{j}.scores", attention_scores(q[:, j], k[:, j // group]))  # (T, T)
            mix = note(f"{at}.heads.{j}.weights", softmax(scores))  # (T, T)
            heads.append(note(f"{at}.heads.{j}.output", mix @ v[:, j // group]))
        x = note(f"{at}.attention_residual", x + note(f"{at}.attention", linear(np.hstack(heads), layer.wo)))
        h = note(f"{at}.ffn_norm", rms_norm(x, layer.ffn_norm, c.norm_eps))  # (T, dim)
        gate = note(f"{at}.gate", linear(h, layer.w1))  # (T, hidden_dim)
        up = note(f"{at}.up", linear(h, layer.w3))  # (T, hidden_dim)
        h = note(f"{at}.feed_forward", linear(silu(gate) * up, layer.w2))  # (T, dim): SwiGLU (Shazeer 2020)
        x = note(at, x + h)  # (T, dim)
    x = note("norm", rms_norm(x, weights.norm, c.norm_eps))  # (T, dim)
    return note("logits", linear(x, weights.output))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def linear(x: Array, w: Array) -> Array:
    return x @ w.astype(x.dtype).T


def rope_angles(positions: Array, c: ModelConfig) -> Array:
    """Rotary position embedding (Su 2021): the angle of each pair of channels at each position."""
    frequency = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)  # (head_dim / 2,): radians a position
    if s := c.rope_scaling:  # Llama 3.1: slow pairs turn `factor` times slower, fast ones as before, others between
        turns = s.original_max_seq_len * frequency / (2 * np.pi)  # (head_dim / 2,)
        kept = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)  # (head_dim / 2,)
        frequency = frequency * (kept + (1 - kept) / s.factor)  # (head_dim / 2,)
    return np.outer(positions, frequency)


def rotate(x: Array, angle: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)  # (T, heads, head_dim / 2): channels i and i + head_dim / 2 are a pair
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]  # (T, 1, head_dim / 2)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention_scores(q: Array, k: Array) -> Array:
    """q (n, head_dim), the last n positions; k (T, head_dim) -> (n, T). Keys after a query's position score -inf."""
    future = np.triu(np.ones((len(q), len(k)), bool), len(k) - len(q) + 1)  # (len(q), len(k))
    return np.where(future, -np.inf, q @ k.T / np.sqrt(q.shape[1]))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def sample(logits: Array, params: SamplingParams, u: float, prompt: Sequence = (), output: Sequence = ()) -> int:
    """The next token's id. u in [0, 1) is the random number. A logit of -inf forbids its token."""
    x = np.array(logits, np.float64)  # (vocab_size,); penalised logits are rounded to float32, as in sampler.py
    for token in {*prompt, *output}:
        count, repetition = output.count(token), params.repetition_penalty or 1
        value = x[token] / repetition if x[token] > 0 else x[token] * repetition
        x[token] = np.float32(value - params.frequency_penalty * count - params.presence_penalty * (count > 0))
    if params.temperature == 0:
        return int(x.argmax())
    ids, weights = survivors(x, params)
    sums = np.cumsum(weights)
    return int(ids[np.searchsorted(sums, u * sums[-1], side="right")])


def survivors(logits: Array, params: SamplingParams) -> tuple[Array, Array]:
    """The ids that top_k, top_p and min_p leave, ascending, and their weights: probabilities times a constant."""
    weights = np.exp((logits - logits.max()) / params.temperature)  # (vocab_size,)
    ids = np.argsort(-logits, kind="stable")[: params.top_k]  # most likely first, ties by lowest id
    if params.top_p not in (None, 1):
        sums = np.cumsum(weights[ids])
        ids = ids[: np.searchsorted(sums, params.top_p * sums[-1]) + 1]  # includes the token that crosses top_p
    ids = np.sort(ids[weights[ids] >= (params.min_p or 0)])  # the most likely token has weight 1
    return ids, weights[ids]
