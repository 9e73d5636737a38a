"""Files that compressed-tensors and bitsandbytes write hold, for us, what these libraries themselves read from them.

Their own code quantises random matrices, which differ in every run, and turns them back. AWQ and GPTQ are in
test_gptq_awq.py.
"""

import json
import secrets
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from llama3 import Llama
from llama3.checkpoint.quantised.parts import Parts
from llama3.checkpoint.quantised.schemes import scheme_of
from llama3.model.quantised import QuantisedMatrix
from llama3.parity.write_reference import load
from tests.quantised_files import EXAMPLES, NF4_CONFIG, Example, compressed, write
from tests.tiny import write_hf

SEED = secrets.randbits(31)
BF16 = ml_dtypes.bfloat16
PRESETS = {
    "W8A16": "pack-quantized", "W4A16": "pack-quantized", "W4A16_ASYM": "pack-quantized", "W8A8": "int-quantized",
    "FP8": "float-quantized", "FP8_DYNAMIC": "float-quantized", "FP8_BLOCK": "float-quantized",
}  # fmt: skip


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BF16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.contiguous().view(torch.int8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.contiguous().numpy()


def read(fields: dict[str, Any], shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> QuantisedMatrix:
    scheme = scheme_of({"quantization_config": fields})
    assert scheme is not None
    parts = Parts("matrix", shape, {name: as_numpy(tensor) for name, tensor in tensors.items()})
    matrix = scheme.read(parts)
    parts.finish()
    return matrix


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(256, 384), (136, 128), (129, 256)])
def test_compressed_tensors_reads_the_same_bits(preset: str, shape: tuple[int, int]) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    if shape[0] % 8 and preset == "FP8_BLOCK":
        shape = (128, 256)  # whole blocks are what the library's own tensor of scales can be reshaped to
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(SEED)) * 0.02).to(torch.bfloat16)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    compare_with_library(PRESETS[preset], scheme, w)


# Formats, shapes and arguments beside those of the presets. Columns need not fill a word, a group or a block.
OTHERS: list[tuple[str, tuple[int, int], dict[str, Any]]] = [
    *(
        ("pack-quantized", (129, 77), {"num_bits": bits, "symmetric": symmetric, "strategy": "channel"})
        for bits in (4, 8)
        for symmetric in (True, False)
    ),
    *(
        ("pack-quantized", (33, 96), {"num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": 32})
        for bits in (4, 8)
        for symmetric in (True, False)
    ),
    *(
        ("int-quantized", (65, 130), {"symmetric": symmetric, "strategy": strategy})
        for symmetric in (True, False)
        for strategy in ("channel", "tensor")
    ),
    ("int-quantized", (33, 96), {"symmetric": False, "strategy": "group", "group_size": 32}),
    ("float-quantized", (65, 130), {"type": "float", "strategy": "channel"}),
    ("float-quantized", (33, 96), {"type": "float", "strategy": "group", "group_size": 32}),
]


@pytest.mark.parametrize(("form", "shape", "arguments"), OTHERS, ids=str)
def test_so_it_does_for_schemes_without_a_preset(form: str, shape: tuple[int, int], arguments: dict[str, Any]) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(**({"num_bits": 8, "type": "int", "symmetric": True} | arguments))
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(SEED)) * 0.02).to(torch.bfloat16)
    compare_with_library(form, QuantizationScheme(targets=["Linear"], weights=weights), w)


def compare_with_library(form: str, scheme: Any, w: torch.Tensor) -> None:
    """Have the library quantise w, write it, and read it again: what we read must be the same numbers."""
    import compressed_tensors.compressors  # noqa: F401 - fills the registry
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    shape, args = (len(w), w.shape[1]), scheme.weights
    if args.strategy == "tensor":
        low, high = w.min().reshape(1), w.max().reshape(1)
    elif args.strategy == "channel":
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    elif args.strategy == "group":
        groups = w.reshape(shape[0], -1, args.group_size)
        low, high = groups.amin(-1), groups.amax(-1)
    else:
        rows, columns = args.block_structure
        pad = torch.nn.functional.pad(w, (0, -shape[1] % columns, 0, -shape[0] % rows))
        blocks = pad.reshape(pad.shape[0] // rows, rows, pad.shape[1] // columns, columns)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    scale, zero = calculate_qparams(low, high, args)
    compressor: Any = BaseCompressor.get_value_from_registry(form)
    state = {"weight": w, "weight_scale": scale, "weight_zero_point": zero}
    stored = compressor.compress(dict(state), scheme)
    expected = compressor.decompress(dict(stored), scheme)["weight"]
    fields = json.loads(scheme.model_dump_json())
    found = read(compressed(form, fields["weights"], fields["input_activations"]), shape, stored)
    entries = found.rows(0, shape[0])
    assert np.array_equal(entries.astype(BF16), as_numpy(expected.to(torch.bfloat16))), SEED


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(64, 128), (129, 192), (1000, 64)])
def test_bitsandbytes_reads_the_same_bits(double: bool, shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    w = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)) * 0.02
    codes, state = functional.quantize_4bit(w, compress_statistics=double, quant_type="nf4", blocksize=64)
    tensors = {"weight": codes} | {f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}
    tensors["weight.absmax"] = tensors.get("weight.absmax", state.absmax)
    found = read(NF4_CONFIG, shape, tensors).rows(0, shape[0])
    expected = functional.dequantize_4bit(codes, state).numpy()
    # The library adds the offset of double quantisation in another order, or not fused: a last bit of float32.
    assert np.allclose(found, expected, rtol=3e-7, atol=0) if double else np.array_equal(found, expected), SEED


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_logits_are_transformers_on_the_same_entries(example: Example, tmp_path: Path) -> None:
    folder, tensors = write(tmp_path / "quantised", example, seed=SEED)
    tokens = list(range(2, 60))
    model = load(write_hf(tmp_path / "plain", example.config, {n: a.astype("f4") for n, a in tensors.items()}))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    found = Llama.load(folder).logits(tokens)
    assert (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max() < 1e-5, SEED
