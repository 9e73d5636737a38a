"""Writes quantised checkpoints by hand, in every scheme that is read, from integers, scales and zero points.

The packing is written out number by number, as each scheme's own documents describe it, and not as the reader unpacks.
What the reader must find is computed from the integers, before they are packed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from llama3.config import ModelConfig
from tests.tiny import hf_config, random_tensors, tiny_config

F8 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)
# The 16 numbers of NF4: quantiles of the normal distribution (Dettmers 2023, appendix E).
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
# A config whose matrices have rows and columns that every scheme can pack.
EVEN = tiny_config(dim=128, head_dim=32, hidden_dim=192)


@dataclass(frozen=True)
class Example:
    """One scheme: quantization_config, and what makes a matrix's tensors of a random generator and the shape."""

    name: str
    fields: Mapping[str, Any]
    make: Callable[[np.random.RandomState, int, int], tuple[dict[str, np.ndarray], np.ndarray]]
    config: ModelConfig = EVEN


def pack(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Codes (rows, n) -> int32 words; field i of a word, from the lowest bits on, is its column order[i]."""
    n = 32 // bits
    order = order or tuple(range(n))
    words = np.zeros((len(codes), -(-codes.shape[1] // n)), np.uint64)
    for column in range(codes.shape[1]):
        shift = bits * order.index(column % n)
        words[:, column // n] += codes[:, column].astype(np.uint64) << np.uint64(shift)
    return words.astype(np.uint32).view(np.int32)


def scales(random: np.random.RandomState, largest: float, *shape: int) -> np.ndarray:
    """Random numbers that make entries of usual size; largest: of what they are multiplied by."""
    return random.uniform(0.05, 0.25, shape) / largest


def entries(codes: np.ndarray, zero: np.ndarray, scale: np.ndarray, height: int, width: int) -> np.ndarray:
    """(code - zero) * scale in float32, where blocks of height x width share a zero and a scale."""
    i, j = np.indices(codes.shape)
    at = (i // height, j // width)
    return (codes.astype(np.float32) - zero.astype(np.float32)[at]) * scale.astype(np.float32)[at]


def weights_config(strategy: str, bits: int = 8, kind: str = "int", symmetric: bool = True, **more: Any) -> dict:
    return {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, "dynamic": False, **more}


def compressed(format: str, weights: Mapping[str, Any], activations: Any = None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    fields = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}
    return fields | {"ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed"} | more


def packed(bits: int, width: int | None, symmetric: bool = True) -> Callable[..., Any]:
    def make(random: np.random.RandomState, n_out: int, n_in: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        middle, group = 1 << (bits - 1), width or n_in
        codes = random.randint(0, 2 * middle, (n_out, n_in))
        scale = scales(random, middle, n_out, -(-n_in // group)).astype(BF16)
        zero = np.full(scale.shape, middle) if symmetric else random.randint(middle // 2, middle * 3 // 2, scale.shape)
        tensors = {"weight_packed": pack(codes, bits), "weight_scale": scale}
        tensors["weight_shape"] = np.array([n_out, n_in], np.int64)
        if not symmetric:
            tensors["weight_zero_point"] = np.ascontiguousarray(pack(zero.T, bits).T)
        return tensors, entries(codes, zero, scale, 1, group)

    return make


def eight_bits(dtype: Any, shape_of: Callable[[int, int], tuple[int, int]], name: str, flat: bool = False) -> Any:
    """int8 or float8, with a scale for each block of the shape that `shape_of` gives."""

    def make(random: np.random.RandomState, n_out: int, n_in: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        bits = random.randint(-127, 128, (n_out, n_in)).astype(np.int8)
        codes = bits if dtype == np.int8 else np.where(bits & 127 == 127, 0, bits).astype(np.int8).view(F8)
        height, width = shape_of(n_out, n_in)
        largest = 128 if dtype == np.int8 else 448
        scale = scales(random, largest, -(-n_out // height), -(-n_in // width)).astype(np.float32)
        expected = entries(codes, np.zeros_like(scale), scale, height, width)
        return {"weight": codes, name: scale.reshape(-1) if flat else scale}, expected

    return make


def gptq(bits: int, width: int | None, minus_1: bool, zeros: bool) -> Callable[..., Any]:
    def make(random: np.random.RandomState, n_out: int, n_in: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        middle, group = 1 << (bits - 1), width or n_in
        codes = random.randint(0, 2 * middle, (n_out, n_in))
        scale = scales(random, middle, n_out, -(-n_in // group)).astype(np.float16)
        zero = random.randint(middle // 2, middle * 3 // 2, scale.shape) if zeros else np.full(scale.shape, middle)
        tensors = {
            "qweight": np.ascontiguousarray(pack(codes, bits).T),
            "qzeros": pack((zero - minus_1).T, bits),
            "scales": np.ascontiguousarray(scale.T),
            "g_idx": (np.arange(n_in) // group).astype(np.int32),
            "bias": np.zeros(n_out, np.float16),
        }
        return tensors, entries(codes, zero, scale, 1, group)

    return make


def awq(random: np.random.RandomState, n_out: int, n_in: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    codes = random.randint(0, 16, (n_out, n_in))
    scale = scales(random, 8, n_out, n_in // 64).astype(np.float16)
    zero = random.randint(4, 12, scale.shape)
    tensors = {"qweight": pack(codes.T, 4, order), "qzeros": pack(zero.T, 4, order)}
    return tensors | {"scales": np.ascontiguousarray(scale.T)}, entries(codes, zero, scale, 1, 64)


def nf4(double: bool) -> Callable[..., Any]:
    def make(random: np.random.RandomState, n_out: int, n_in: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes = random.randint(0, 16, (n_out, n_in))
        flat = codes.reshape(-1)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [n_out, n_in]}
        tensors = {
            "weight": (flat[::2] * 16 + flat[1::2]).astype(np.uint8)[:, None],
            "weight.quant_map": NF4,
            "weight.absmax": scales(random, 1, codes.size // 64).astype(np.float32),
        }
        absmax = tensors["weight.absmax"]
        if double:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.125}
            numbers = np.sort(random.uniform(-1, 1, 256)).astype(np.float32)
            largest = scales(random, 10, -(-absmax.size // 256)).astype(np.float32)
            small = random.randint(0, 256, absmax.size).astype(np.uint8)
            absmax = np.array([numbers[c] * largest[i // 256] for i, c in enumerate(small)], np.float32)
            absmax = absmax + np.float32(0.125)
            tensors |= {"weight.absmax": small, "weight.nested_absmax": largest, "weight.nested_quant_map": numbers}
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors["weight.quant_state.bitsandbytes__nf4"] = text
        return tensors, NF4[codes] * absmax.reshape(n_out, -1).repeat(64, axis=1)

    return make


W8A8 = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
FP8_TOKEN = W8A8 | {"type": "float"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, "true_sequential": True}
NF4_CONFIG = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": False,
}  # fmt: skip
ODD = tiny_config(dim=52, hidden_dim=83, head_dim=10)
EXAMPLES = [
    Example("int4 by row", compressed("pack-quantized", weights_config("channel", 4)), packed(4, None), ODD),
    Example(
        "int4 by group", compressed("pack-quantized", weights_config("group", 4, group_size=32)), packed(4, 32), ODD
    ),
    Example(
        "int4 with zeros",
        compressed("pack-quantized", weights_config("group", 4, symmetric=False, group_size=64)),
        packed(4, 64, False),
    ),
    Example("int8 packed by row", compressed("pack-quantized", weights_config("channel", 8)), packed(8, None), ODD),
    Example(
        "int8 packed with zeros",
        compressed("pack-quantized", weights_config("group", 8, symmetric=False, group_size=32)),
        packed(8, 32, False),
    ),
    Example(
        "int8 by row",
        compressed("int-quantized", weights_config("channel"), W8A8),
        eight_bits(np.int8, lambda n_out, n_in: (1, n_in), "weight_scale"),
        ODD,
    ),
    Example(
        "float8 by matrix",
        compressed("float-quantized", weights_config("tensor", kind="float"), FP8_TOKEN),
        eight_bits(F8, lambda n_out, n_in: (n_out, n_in), "weight_scale", flat=True),
        ODD,
    ),
    Example(
        "float8 by row",
        compressed("float-quantized", weights_config("channel", kind="float"), FP8_TOKEN),
        eight_bits(F8, lambda n_out, n_in: (1, n_in), "weight_scale"),
    ),
    Example(
        "float8 by block",
        compressed("float-quantized", weights_config("block", kind="float", block_structure=[64, 32]), FP8_TOKEN),
        eight_bits(F8, lambda n_out, n_in: (64, 32), "weight_scale"),
        ODD,
    ),
    Example(
        "AutoFP8",
        {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]},
        eight_bits(F8, lambda n_out, n_in: (n_out, n_in), "weight_scale", flat=True),
    ),
    Example(
        "fp8 by block",
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]},
        eight_bits(F8, lambda n_out, n_in: (32, 32), "weight_scale_inv"),
    ),
    Example("GPTQ", GPTQ, gptq(4, 64, True, False)),
    Example("GPTQ v2 with zeros", GPTQ | {"checkpoint_format": "gptq_v2", "sym": False}, gptq(4, 64, False, True)),
    Example("GPTQ 8 bits by row", GPTQ | {"bits": 8, "group_size": -1, "sym": False}, gptq(8, None, True, True)),
    Example("AWQ", {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}, awq),
    Example("NF4", NF4_CONFIG, nf4(False)),
    Example("NF4 twice", NF4_CONFIG | {"bnb_4bit_use_double_quant": True}, nf4(True)),
]
BY_NAME = {example.name: example for example in EXAMPLES}


def write(
    folder: Path, example: Example, seed: int = 0, output: bool = False, **changes: Any
) -> tuple[Path, dict[str, np.ndarray]]:
    """Write config.json and model.safetensors. -> the folder, and the plain model's tensors by Hugging Face's names.

    output: quantise lm_head, too. changes: of the config, such as tied_embeddings.
    """
    config = example.config if not changes else tiny_config(**(vars(example.config) | changes))
    random = np.random.RandomState(seed)
    plain = random_tensors(config, seed)
    stored = dict(plain)
    for name, array in plain.items():
        if name.endswith("_proj.weight") or (output and name == "lm_head.weight"):
            base = name.removesuffix("weight")
            parts, plain[name] = example.make(random, *array.shape)
            del stored[name]
            stored |= {base + part: tensor for part, tensor in parts.items()}
    save(folder, config, stored, example.fields)
    return folder, plain


def save(folder: Path, config: ModelConfig, tensors: Mapping[str, np.ndarray], fields: Any) -> None:
    """The files of a checkpoint; fields: quantization_config, or None to leave it out."""
    folder.mkdir(parents=True, exist_ok=True)
    more = {} if fields is None else {"quantization_config": fields}
    (folder / "config.json").write_text(json.dumps(hf_config(config) | more))
    safetensors.numpy.save_file(dict(tensors), folder / "model.safetensors")
