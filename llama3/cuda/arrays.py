"""Device arrays that always travel together, bundled for the functions that launch kernels."""

from dataclasses import dataclass

from llama3.cuda.device import Array


@dataclass(frozen=True)
class Rows:
    """Where each row of a step stands. The numbers are in device memory, so that a replayed graph reads new ones."""

    positions: Array  # (T,) int32; -1: a padding row, which the kernels skip
    slots: Array  # (T,) int32: the cache slot of the row's sequence


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer, of all slots."""

    k: Array  # (slots, n_kv_heads, max_len, head_dim) bfloat16, rotated already, as in the NumPy model
    v: Array  # (slots, n_kv_heads, max_len, head_dim) bfloat16


@dataclass(frozen=True)
class RopeTable:
    """Cosine and sine of every angle, as `llama3.model.rope.rope_table` computes them."""

    cos: Array  # (max_seq_len, head_dim / 2) float32
    sin: Array  # (max_seq_len, head_dim / 2) float32


@dataclass(frozen=True)
class NormInput:
    """What RMSNorm is computed from: rms_norm(x, weight, eps)."""

    x: Array  # (T, dim) float32: the residual stream
    weight: Array  # (dim,) bfloat16
    eps: float
