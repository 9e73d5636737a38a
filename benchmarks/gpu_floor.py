"""The bytes that a step must read, the FLOPs that it must compute, and thus the least time that it can take.

    python benchmarks/gpu_floor.py                       # the table for an H200, from published figures
    python benchmarks/gpu_floor.py --read 4.3 --multiply 790 --gap 1.3

A decoding step reads every weight except the embedding's once, however many sequences share the step, and the keys and
values of each sequence. A prompt multiplies every token with every weight except the head's, and computes half a square
of attention scores in each layer.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.config import ModelConfig

LLAMA3_8B = ModelConfig(4096, 32, 32, 8, 128, 14336, 128_256)
TINY = ModelConfig(128, 2, 4, 1, 64, 192, 515, max_seq_len=320)
LAUNCHES_PER_LAYER = 5  # for one row: norm, qkv and rope; attention; o; norm, gate and up; down
MORE_PER_LAYER = 3  # for several rows: the two norms and rope are launches of their own


def weights_read(c: ModelConfig) -> int:
    """Bytes of bf16 weights that a step reads: all of them, norms too, but only a few rows of the embedding."""
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer = (2 * q + 2 * kv) * c.dim + 3 * c.hidden_dim * c.dim + 2 * c.dim
    return 2 * (c.n_layers * layer + c.dim + c.vocab_size * c.dim)


def cache_read(c: ModelConfig, context: int) -> int:
    """Bytes of keys and values that a step reads for one sequence."""
    return 2 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * context


def decode_bytes(c: ModelConfig, batch: int, context: int) -> int:
    return weights_read(c) + batch * cache_read(c, context)


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


def predictions(c: ModelConfig, read: float, multiply: float, gap: float) -> list[tuple[str, float, str]]:
    """(step, predicted ms, explanation) for each step.

    read: TB/s of reading; multiply: TFLOP/s of a large product; gap: microseconds between two kernels of a graph.
    """
    launches = LAUNCHES_PER_LAYER * c.n_layers + 4  # embedding, head, and two of a greedy draw
    lost = launches * gap / 1e3
    out = []
    for batch, context in ((1, 128), (1, 2048), (1, 8192), (8, 1024), (32, 1024), (64, 1024)):
        ms = decode_bytes(c, batch, context) / read / 1e9
        more = (MORE_PER_LAYER * c.n_layers + 1) * gap / 1e3 if batch > 1 else 0  # and the head's norm
        why = f"{decode_bytes(c, batch, context) / 1e9:.2f} GB, {ms:.2f} ms of reading and {lost + more:.2f} of gaps"
        out.append((f"decode, batch {batch}, context {context:,}", ms + lost + more, why))
    for T in (128, 512, 2048, 8192):
        arithmetic, reading = prefill_flops(c, T) / multiply / 1e9, weights_read(c) / read / 1e9
        why = f"{prefill_flops(c, T) / 1e12:.1f} TFLOP, {arithmetic:.1f} ms; the weights alone {reading:.1f}"
        out.append((f"prefill of {T:,}", max(arithmetic, reading), why))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--read", type=float, default=4.3, help="TB/s of reading (default 4.3, an H200's measured copy)"
    )
    parser.add_argument("--multiply", type=float, default=790, help="TFLOP/s of a large bf16 product (default 790)")
    parser.add_argument("--gap", type=float, default=1.3, help="microseconds between a graph's kernels (default 1.3)")
    args = parser.parse_args()
    for step, ms, explanation in predictions(LLAMA3_8B, args.read, args.multiply, args.gap):
        print(f"{step:32} {ms:8.2f} ms   {explanation}")


if __name__ == "__main__":
    main()
