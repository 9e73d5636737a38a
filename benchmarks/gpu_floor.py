"""What a step must move and multiply, and so the least time that it can take: the yardstick of gpu.py.

    python benchmarks/gpu_floor.py                       # the table for an H200, from its figures on paper
    python benchmarks/gpu_floor.py --read 4.3 --multiply 790 --gap 1.3

Decoding reads every weight but the embedding's once a step, however many sequences share it, and each sequence's keys
and values. A prompt multiplies every weight but the head with every token, and half a square of scores a layer.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.config import ModelConfig

LLAMA3_8B = ModelConfig(4096, 32, 32, 8, 128, 14336, 128_256)
TINY = ModelConfig(128, 2, 4, 1, 64, 192, 515, max_seq_len=320)
LAUNCHES_A_LAYER = 5  # of one row: norm, qkv and rope; attention; o; norm, gate and up; down
MORE_A_LAYER = 3  # of several: two norms and rope are launches of their own


def weights_read(c: ModelConfig) -> int:
    """Bytes a step reads of bf16 weights: all but the embedding, whose rows are few, and the norms' are in it."""
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer = (2 * q + 2 * kv) * c.dim + 3 * c.hidden_dim * c.dim + 2 * c.dim
    return 2 * (c.n_layers * layer + c.dim + c.vocab_size * c.dim)


def cache_read(c: ModelConfig, context: int) -> int:
    """Bytes of keys and values that one sequence's step reads."""
    return 2 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * context


def decode_bytes(c: ModelConfig, batch: int, context: int) -> int:
    return weights_read(c) + batch * cache_read(c, context)


def prefill_flops(c: ModelConfig, T: int) -> float:
    """Of a prompt of T tokens whose last one's logits are wanted."""
    head = c.vocab_size * c.dim
    return T * (weights_read(c) - 2 * head) + 2 * head + attention_flops(c, T) * c.n_layers


def attention_flops(c: ModelConfig, T: int) -> float:
    """Of one layer, causal: two products of half a square."""
    return 2 * T * T * c.n_heads * c.head_dim


def shapes(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of a layer and the head, (out, in)."""
    return {
        "qkv": ((c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.dim),
        "o": (c.dim, c.n_heads * c.head_dim),
        "gate_up": (2 * c.hidden_dim, c.dim),
        "down": (c.dim, c.hidden_dim),
        "head": (c.vocab_size, c.dim),
    }


def predictions(c: ModelConfig, read: float, multiply: float, gap: float) -> list[tuple[str, float, str]]:
    """(what, predicted ms, why), by read TB/s, multiply TFLOP/s and the gap of microseconds between two kernels."""
    launches = LAUNCHES_A_LAYER * c.n_layers + 4  # embedding, head, and two of a greedy draw
    lost = launches * gap / 1e3
    out = []
    for batch, context in ((1, 128), (1, 2048), (1, 8192), (8, 1024), (32, 1024), (64, 1024)):
        ms = decode_bytes(c, batch, context) / read / 1e9
        more = (MORE_A_LAYER * c.n_layers + 1) * gap / 1e3 if batch > 1 else 0  # and the head's norm
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
    for what, ms, why in predictions(LLAMA3_8B, args.read, args.multiply, args.gap):
        print(f"{what:32} {ms:8.2f} ms   {why}")


if __name__ == "__main__":
    main()
