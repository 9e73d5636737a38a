"""The bytes that a step must read, and the FLOPs that it must compute, from the shapes of the model.

A decoding step reads every weight except the embedding's once, however many sequences share the step, and the keys and
values of each sequence. A prompt multiplies every token with every weight except the head's, and computes half a square
of attention scores in each layer. gpu_model.py predicts what a step takes beyond that.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.config import ModelConfig
from llama3.cuda.quantised import row_bytes

LLAMA3_8B = ModelConfig(4096, 32, 32, 8, 128, 14336, 128_256)
TINY = ModelConfig(128, 2, 4, 1, 64, 192, 515, max_seq_len=320)


def weights_read(c: ModelConfig, kind: str | None = None) -> int:
    """Bytes of weights that a step reads: all of them, norms too, but only a few rows of the embedding.

    kind: of the matrices, with the padding of their rows (kernels/weights.cuh); None: bf16.
    """
    *of_layer, head = shapes(c).values()
    norms = 2 * c.dim * (2 * c.n_layers + 1)
    return c.n_layers * sum(matrix_bytes(shape, kind) for shape in of_layer) + matrix_bytes(head, kind) + norms


def matrix_bytes(shape: tuple[int, int], kind: str | None) -> int:
    n_out, width = shape
    return n_out * (row_bytes(kind, width) if kind else 2 * width)


def cache_read(c: ModelConfig, context: int) -> int:
    """Bytes of keys and values that a step reads for one sequence."""
    return 2 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * context


def decode_bytes(c: ModelConfig, batch: int, context: int, kind: str | None = None) -> int:
    return weights_read(c, kind) + batch * cache_read(c, context)


def prefill_flops(c: ModelConfig, T: int) -> float:
    """FLOPs of a prompt of T tokens, with the logits of the last token."""
    head = c.vocab_size * c.dim
    return T * (weights_read(c) - 2 * head) + 2 * head + attention_flops(c, T) * c.n_layers


def attention_flops(c: ModelConfig, T: int) -> float:
    """FLOPs of one layer's causal attention: two products of half a square."""
    return 2 * T * T * c.n_heads * c.head_dim


def shapes(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """The shapes (out, in) of the matrices of a layer, and of the head."""
    return {
        "qkv": ((c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.dim),
        "o": (c.dim, c.n_heads * c.head_dim),
        "gate_up": (2 * c.hidden_dim, c.dim),
        "down": (c.dim, c.hidden_dim),
        "head": (c.vocab_size, c.dim),
    }
