"""The weights on the GPU, in bfloat16 or as codes. Matrices that one product reads together are joined into one.

A quantised matrix keeps its codes if the kernels take its kind (`quantised.kind_of`). All others become bfloat16, one
after the other, which rounds them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.quantised import SCRATCH_ROWS, Matrix, QuantisedArray, kind_of, row_bytes, upload_rows
from llama3.model import weights as numpy_weights
from llama3.model.quantised import QuantisedMatrix

PIECE = 1024  # rows of a quantised matrix that become bfloat16 at a time


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: Array  # (dim,)
    wqkv: Matrix  # ((n_heads + 2 * n_kv_heads) * head_dim, dim): the rows of wq, then wk, then wv
    wo: Matrix  # (dim, n_heads * head_dim)
    ffn_norm: Array  # (dim,)
    w13: Matrix  # (2 * hidden_dim, dim): the rows of w1 (gate), then of w3 (up)
    w2: Matrix  # (dim, hidden_dim): down


@dataclass(frozen=True)
class Weights:
    tok_embeddings: Array  # (vocab_size, dim)
    layers: list[LayerWeights]
    norm: Array  # (dim,)
    output: Matrix  # (vocab_size, dim); the same array as tok_embeddings if the two are tied


def upload_weights(
    device: Device, weights: numpy_weights.Weights, report: Callable[[int], None] | None = None
) -> Weights:
    """Upload each tensor once, straight from the memory-mapped file. float16 and float32 become bfloat16.

    report: called with the number of parameters uploaded so far. Raises DeviceError if there is not enough memory.
    """
    done = 0
    scratch = device.alloc((scratch_entries(weights),), bfloat16)

    def upload(*parts: np.ndarray | QuantisedMatrix) -> Matrix:
        nonlocal done
        kind, shape = joint_kind(parts), (sum(len(part) for part in parts), *parts[0].shape[1:])
        stored = shape if kind is None else (shape[0], row_bytes(kind, shape[1]))
        out = device.alloc(stored, bfloat16 if kind is None else np.uint8)
        row = 0
        for part in parts:
            into = out[row : row + len(part)]
            if kind is not None and isinstance(part, QuantisedMatrix):
                upload_rows(device, kind, part, into)
            else:
                _upload_bf16(device, part, into)
            row += len(part)
            done += part.size
            if report:
                report(done)
        return out if kind is None else QuantisedArray(kind, (shape[0], shape[1]), out, scratch)

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


def products(weights: numpy_weights.Weights) -> Iterator[tuple[np.ndarray | QuantisedMatrix, ...]]:
    """The matrices of each product, as they are joined."""
    for layer in weights.layers:
        yield from ((layer.wq, layer.wk, layer.wv), (layer.wo,), (layer.w1, layer.w3), (layer.w2,))
    yield (weights.output,)


def joint_kind(parts: tuple[np.ndarray | QuantisedMatrix, ...]) -> str | None:
    """How the kernels read matrices that are joined into one; None: as bfloat16."""
    kinds = {kind_of(part) if isinstance(part, QuantisedMatrix) else None for part in parts}
    return kinds.pop() if len(kinds) == 1 else None


def scratch_entries(weights: numpy_weights.Weights) -> int:
    """The size of `QuantisedArray.scratch`; 0 without a quantised matrix."""
    sizes = [
        min(SCRATCH_ROWS, sum(map(len, parts))) * parts[0].shape[1] for parts in products(weights) if joint_kind(parts)
    ]
    return max(sizes, default=0)


def uploaded_bytes(weights: numpy_weights.Weights) -> int:
    """Bytes of all weights on the GPU, and of the scratch memory."""
    matrices = 0
    for parts in products(weights):
        kind, width = joint_kind(parts), parts[0].shape[1]
        matrices += sum(map(len, parts)) * (2 * width if kind is None else row_bytes(kind, width))
    norms = weights.norm.size + sum(layer.attention_norm.size + layer.ffn_norm.size for layer in weights.layers)
    tied = weights.output is weights.tok_embeddings
    return matrices + 2 * (norms + scratch_entries(weights) + (0 if tied else weights.tok_embeddings.size))


def described(weights: numpy_weights.Weights) -> str:
    """What becomes of quantised matrices, in one line; empty if there are none."""
    kinds: Counter[str | None] = Counter()
    for parts in products(weights):
        kinds[joint_kind(parts)] += sum(isinstance(part, QuantisedMatrix) for part in parts)
    rounded = kinds.pop(None, 0)
    codes = ", ".join(f"{n} in {str(kind).lower()}" for kind, n in sorted(kinds.items(), key=str))
    found = {"quantised matrices that stay codes": codes, "quantised matrices that become bfloat16": rounded}
    return "; ".join(f"{what}: {n}" for what, n in found.items() if n)


def _upload_bf16(device: Device, part: np.ndarray | QuantisedMatrix, into: Array) -> None:
    if isinstance(part, QuantisedMatrix):
        for first in range(0, len(part), PIECE):
            rows = part.rows(first, min(first + PIECE, len(part)))
            device.upload(rows.astype(bfloat16), into=into[first : first + len(rows)])
    else:
        device.upload(part.astype(bfloat16, copy=False), into=into)
