"""The matrices of a model, by Meta's names. `linear` computes x @ w.T, so a matrix is (outputs, inputs)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: np.ndarray  # (dim,)
    wq: np.ndarray  # (n_heads * head_dim, dim)
    wk: np.ndarray  # (n_kv_heads * head_dim, dim)
    wv: np.ndarray  # (n_kv_heads * head_dim, dim)
    wo: np.ndarray  # (dim, n_heads * head_dim)
    ffn_norm: np.ndarray  # (dim,)
    w1: np.ndarray  # (hidden_dim, dim), the gate
    w2: np.ndarray  # (dim, hidden_dim), down
    w3: np.ndarray  # (hidden_dim, dim), up


@dataclass(frozen=True)
class Weights:
    """In the checkpoint's own dtype: bfloat16, float16 or float32. wq and wk are in split halves (see `rope.py`)."""

    tok_embeddings: np.ndarray  # (vocab_size, dim)
    layers: list[LayerWeights]
    norm: np.ndarray  # (dim,)
    output: np.ndarray  # (vocab_size, dim); the same array as tok_embeddings if the two are tied
