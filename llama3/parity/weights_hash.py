"""Hashes of a model's weights by part, so that two people can see whether they have the same ones.

They are taken of the values as float32: the same whether files hold bfloat16 or float32, one shard or many, in Hugging
Face's order of rows or in Meta's.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from llama3.model.weights import Weights

BLOCK = 1 << 22  # values converted at a time
DIGITS = 16  # of a hash, in hexadecimal


def weights_hash(weights: Weights) -> dict[str, str]:
    """{"tok_embeddings": hash, "layers.0": hash, ..., "norm": hash, "output": hash}. The 8B takes about a minute."""
    parts = {"tok_embeddings": [weights.tok_embeddings]}
    parts |= {f"layers.{i}": list(vars(layer).values()) for i, layer in enumerate(weights.layers)}
    parts |= {"norm": [weights.norm], "output": [weights.output]}
    return {name: _hash(arrays) for name, arrays in parts.items()}


def other_parts(ours: Mapping[str, str], reference: Mapping[str, str]) -> list[str]:
    """The parts whose hashes differ. Parts that one side does not name are left out."""
    return [name for name in reference if name in ours and ours[name] != reference[name]]


def _hash(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        rows = max(1, BLOCK // max(1, array[:1].size))
        for begin in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[begin : begin + rows], "<f4").data)
    return digest.hexdigest()[:DIGITS]
