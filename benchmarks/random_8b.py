"""Random weights in the 8B's shapes, in memory, for benchmarks: four layers, the embedding and the output matrix."""

import ml_dtypes
import numpy as np

from llama3.config import ModelConfig
from llama3.model.weights import LayerWeights, Weights

CONFIG = ModelConfig(dim=4096, n_layers=4, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14336, vocab_size=128_256)


def random_matrix(rng: np.random.Generator, out: int, into: int) -> np.ndarray:
    """(out, into) bfloat16 of both signs, from 2^-7 to 2^-5: made of bits, since two billion normals take a minute."""
    matrix = np.empty((out, into), np.uint16)
    for begin in range(0, out, 1024):  # in parts, or making a matrix would be the peak of the memory
        part = matrix[begin : begin + 1024]
        bits = rng.integers(0, 2**9, part.shape, np.uint16)
        part[:] = (bits >> 8 << 15) | 0x3C00 | (bits & 0xFF)
    return matrix.view(ml_dtypes.bfloat16)


def random_weights(c: ModelConfig = CONFIG) -> Weights:
    rng = np.random.default_rng(0)
    ones = np.ones(c.dim, ml_dtypes.bfloat16)
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layers = [
        LayerWeights(
            attention_norm=ones,
            wq=random_matrix(rng, q, c.dim),
            wk=random_matrix(rng, kv, c.dim),
            wv=random_matrix(rng, kv, c.dim),
            wo=random_matrix(rng, c.dim, q),
            ffn_norm=ones,
            w1=random_matrix(rng, c.hidden_dim, c.dim),
            w2=random_matrix(rng, c.dim, c.hidden_dim),
            w3=random_matrix(rng, c.hidden_dim, c.dim),
        )
        for _ in range(c.n_layers)
    ]
    embeddings, output = (random_matrix(rng, c.vocab_size, c.dim) for _ in range(2))
    return Weights(embeddings, layers, ones, output)


def projections(layer: LayerWeights) -> list[np.ndarray]:
    return [layer.wq, layer.wk, layer.wv, layer.wo, layer.w1, layer.w3, layer.w2]


def weight_bytes(weights: Weights) -> int:
    matrices = [weights.tok_embeddings, weights.output, *(w for layer in weights.layers for w in projections(layer))]
    return sum(w.nbytes for w in matrices)
