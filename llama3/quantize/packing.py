"""Codes as compressed-tensors packs them, and the fields of config.json that describe them ("pack-quantized")."""

from typing import Any

import numpy as np

from llama3.config import ModelConfig

BITS = (8, 4)
WIDTHS = (128, 64, 32)  # columns of a group: the first that divides every row


def group_width(config: ModelConfig, bits: int) -> int | None:
    """How many columns share a scale. None: all of a row, with 8 bits and where no group's width divides every row."""
    rows = (config.dim, config.n_heads * config.head_dim, config.hidden_dim)
    return next((width for width in WIDTHS if not any(n % width for n in rows)), None) if bits == 4 else None


def packed_bytes(n_in: int, bits: int) -> int:
    """Bytes of a packed row: whole words of 32 bits."""
    return -(-n_in * bits // 32) * 4


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes: (n_out, n_in), whole numbers from -2^(bits-1) on -> (n_out, packed_bytes) uint8

    Each code is stored plus 2^(bits-1). Of two codes in a byte, that of the even column is in the lower half. The rest
    of the last word is 0.
    """
    n_out, n_in = codes.shape
    columns = packed_bytes(n_in, bits) * 8 // bits
    shifted = np.zeros((n_out, columns), np.uint8)
    np.add(codes, 2 ** (bits - 1), out=shifted[:, :n_in], casting="unsafe")
    return shifted if bits == 8 else shifted[:, 0::2] | shifted[:, 1::2] << 4


def quantization_config(bits: int, width: int | None) -> dict[str, Any]:
    """The field `quantization_config` of config.json, with what compressed-tensors 0.20 writes."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "group_size": width,
        "strategy": "group" if width else "channel",
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": None,
    }
    return {
        "config_groups": {"group_0": group},
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": None,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
    }
