"""The weights on the GPU, in bfloat16. Matrices that one product reads together are joined into one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llama3.cuda.device import Array, Device, bfloat16
from llama3.model import weights as numpy_weights


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: Array  # (dim,)
    wqkv: Array  # ((n_heads + 2 * n_kv_heads) * head_dim, dim): the rows of wq, then wk, then wv
    wo: Array  # (dim, n_heads * head_dim)
    ffn_norm: Array  # (dim,)
    w13: Array  # (2 * hidden_dim, dim): the rows of w1 (gate), then of w3 (up)
    w2: Array  # (dim, hidden_dim): down


@dataclass(frozen=True)
class Weights:
    tok_embeddings: Array  # (vocab_size, dim)
    layers: list[LayerWeights]
    norm: Array  # (dim,)
    output: Array  # (vocab_size, dim); the same array as tok_embeddings if the two are tied


def upload_weights(
    device: Device, weights: numpy_weights.Weights, report: Callable[[int], None] | None = None
) -> Weights:
    """Upload each tensor once, straight from the memory-mapped file. float16 and float32 become bfloat16.

    report: called with the number of parameters uploaded so far. Raises DeviceError if there is not enough memory.
    """
    done = 0

    def upload(*parts: np.ndarray) -> Array:
        nonlocal done
        out = device.alloc((sum(len(part) for part in parts), *parts[0].shape[1:]), bfloat16)
        row = 0
        for part in parts:
            device.upload(part.astype(bfloat16, copy=False), into=out[row : row + len(part)])
            row += len(part)
            done += part.size
            if report:
                report(done)
        return out

    tok_embeddings = upload(weights.tok_embeddings)
    layers = [
        LayerWeights(
            upload(layer.attention_norm),
            upload(layer.wq, layer.wk, layer.wv),
            upload(layer.wo),
            upload(layer.ffn_norm),
            upload(layer.w1, layer.w3),
            upload(layer.w2),
        )
        for layer in weights.layers
    ]
    tied = weights.output is weights.tok_embeddings
    return Weights(tok_embeddings, layers, upload(weights.norm), tok_embeddings if tied else upload(weights.output))
