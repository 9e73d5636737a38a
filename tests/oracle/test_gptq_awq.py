"""GPTQ and AWQ: random words are the same entries to us as to the libraries that write such files.

compressed-tensors converts files of AutoAWQ. The other libraries are no part of the extra `oracle`: AutoAWQ is
deprecated, AutoGPTQ does not run with transformers 5, and GPTQModel wants another torch. Only their modules in plain
torch are imported, so they need no packages of their own:

    pip install --no-deps --target FOLDER autoawq==0.2.9 auto-gptq==0.7.1 gptqmodel==7.7.0
    PYTHONPATH=FOLDER pytest tests/oracle/test_gptq_awq.py

The libraries multiply in the dtype of the scales. So ours are equal in float32, and equal in float16 once rounded.
"""

import importlib
import importlib.util
import logging
import secrets
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from llama3.checkpoint.quantised.parts import Parts
from llama3.checkpoint.quantised.schemes import scheme_of

SEED = secrets.randbits(31)
AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "desc_act": False, "sym": False}
# (n_out, n_in), columns of a group. AWQ needs multiples of 8 outputs.
AWQ_SHAPES = [((16, 10), 2), ((136, 192), 64), ((24, 130), -1), ((40, 384), 128)]


def random_words(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(SEED).randint(-(2**31), 2**31, shape, np.int64).astype(np.int32))


def random_scales(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(SEED).uniform(1e-3, 0.1, shape).astype(np.float16))


def read(fields: dict[str, Any], shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Our entries, (n_out, n_in) float32."""
    scheme = scheme_of({"quantization_config": fields})
    assert scheme is not None
    parts = Parts("matrix", shape, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    matrix = scheme.read(parts)
    parts.finish()
    return matrix.rows(0, shape[0])


def awq_file(shape: tuple[int, int], group: int) -> dict[str, torch.Tensor]:
    (n_out, n_in), groups = shape, 1 if group == -1 else shape[1] // group
    words, scales = random_words(n_in + groups, n_out // 8), random_scales(groups, n_out)
    return {"qweight": words[:n_in], "qzeros": words[n_in:], "scales": scales}


@pytest.mark.parametrize(("shape", "group"), AWQ_SHAPES)
def test_compressed_tensors_converts_awq_to_the_same_bits(shape: tuple[int, int], group: int) -> None:
    pytest.importorskip("compressed_tensors")
    import compressed_tensors.compressors  # noqa: F401 - fills the registry
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    tensors, width = awq_file(shape, group), shape[1] if group == -1 else group
    converter = AutoAWQConverter.from_autoawq_config(AWQ | {"group_size": width})
    stored = converter.process({f"m.{name}": tensor for name, tensor in tensors.items()})
    scheme = preset_name_to_scheme("W4A16_ASYM", ["Linear"])
    assert scheme.weights is not None
    scheme.weights.group_size = width
    compressor: Any = BaseCompressor.get_value_from_registry("pack-quantized")
    expected = compressor.decompress({n.removeprefix("m."): t for n, t in stored.items()}, scheme)["weight"]
    assert expected.dtype == torch.float16
    found = read(AWQ | {"group_size": group}, shape, tensors)
    assert np.array_equal(found.astype(np.float16), expected.numpy()), SEED


@pytest.mark.parametrize(("shape", "group"), AWQ_SHAPES)
def test_autoawq_reads_the_same_bits(shape: tuple[int, int], group: int, module: Callable[..., Any]) -> None:
    packing = module("awq.utils.packing_utils", "AutoAWQ")
    tensors, width = awq_file(shape, group), shape[1] if group == -1 else group
    found = read(AWQ | {"group_size": group}, shape, tensors)
    for dtype in (torch.float16, torch.float32):
        scales = tensors["scales"].to(dtype)
        expected = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], scales, 4, width)
        assert np.array_equal(found.T.astype(expected.numpy().dtype), expected.numpy()), SEED


@pytest.mark.parametrize(("n_out", "n_in", "group"), [(32, 96, 32), (64, 96, -1)])
def test_what_autoawq_writes_is_read_back(n_out: int, n_in: int, group: int, module: Callable[..., Any]) -> None:
    gemm = module("awq.modules.linear.gemm", "AutoAWQ")
    linear, scales, zeros = quantisable(n_out, n_in, group, 4)
    written = gemm.WQLinear_GEMM.from_linear(linear, 4, n_in if group == -1 else group, scales=scales, zeros=zeros)
    found = read(AWQ | {"group_size": group}, (n_out, n_in), dict(written.state_dict()))
    assert np.array_equal(found, linear.weight.numpy()), SEED


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n_out", "n_in", "group"), [(32, 96, 32), (96, 64, -1)])
def test_autogptq_reads_and_writes_the_same_bits(
    bits: int, n_out: int, n_in: int, group: int, module: Callable[..., Any]
) -> None:
    layers = module("auto_gptq.nn_modules.qlinear.qlinear_cuda_old", "AutoGPTQ")
    linear, scales, zeros = quantisable(n_out, n_in, group, bits)
    layer = layers.QuantLinear(bits, group, n_in, n_out, bias=False, weight_dtype=torch.float32)
    layer.pack(linear, scales.T, zeros.T, None)
    tensors = layer.state_dict() | {"scales": scales.half()}
    found = read(GPTQ | {"bits": bits, "group_size": group}, (n_out, n_in), dict(tensors))
    assert np.array_equal(found, linear.weight.numpy()), SEED
    expected = layer(torch.eye(n_in)).T  # sums of one entry and zeros
    assert np.array_equal(found, expected.numpy()), SEED


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shape", "group"), [((8, 16), 8), ((136, 264), 64), ((24, 136), -1), ((40, 384), 128)])
def test_gptqmodel_reads_the_same_bits(
    form: str, bits: int, shape: tuple[int, int], group: int, module: Callable[..., Any], tmp_path: Path
) -> None:
    stubs = {"torch": {"HAS_NPU": False}, "logger": {"setup_logger": logging.getLogger}}
    gptqmodel = module("gptqmodel.utils.model_dequant", "GPTQModel", "gptqmodel.quantization", **stubs)
    (n_out, n_in), in_word = shape, 32 // bits
    width = n_in if group == -1 else group
    groups = -(-n_in // width)
    zeros = random_words(groups, n_out // in_word)
    if form == "gptq":  # without the highest code, which plus 1 is none
        zeros &= 0x77777777 if bits == 4 else 0x7F7F7F7F
    tensors = {
        "qweight": random_words(n_in // in_word, n_out),
        "qzeros": zeros,
        "scales": random_scales(groups, n_out),
        "g_idx": torch.arange(n_in, dtype=torch.int32) // width,
    }
    fields = GPTQ | {"bits": bits, "group_size": group, "checkpoint_format": form}
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"m.{name}": tensor for name, tensor in tensors.items()}, file)
    expected = gptqmodel.convert_gptq_file(file, torch.float32, fields, "cpu")["m.weight"]
    assert np.array_equal(read(fields, shape, tensors), expected.numpy()), SEED


def quantisable(n_out: int, n_in: int, group: int, bits: int) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A layer whose weights are codes, zero points and scales already: (layer, scales, zeros (groups, n_out))."""
    random, width = np.random.RandomState(SEED), n_in if group == -1 else group
    scales = random_scales(n_in // width, n_out).float()
    zeros = torch.from_numpy(random.randint(1, 2**bits, scales.shape).astype(np.float32))
    codes = torch.from_numpy(random.randint(0, 2**bits, (n_in, n_out)).astype(np.float32))
    linear = torch.nn.Linear(n_in, n_out, bias=False)
    entries = (codes - zeros.repeat_interleave(width, 0)) * scales.repeat_interleave(width, 0)
    linear.weight = torch.nn.Parameter(entries.T.contiguous(), requires_grad=False)
    return linear, scales, zeros


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A module of a library that is installed by hand, without what its packages import beside it."""

    def load(name: str, library: str, *more: str, **stubs: dict[str, Any]) -> Any:
        above = name.split(".")[:-1]
        for package in [*(".".join(above[: i + 1]) for i in range(len(above))), *more]:
            spec = importlib.util.find_spec(package)
            if spec is None:
                pytest.skip(f"{library} is not installed")
            bare = types.ModuleType(package)
            bare.__path__ = list(spec.submodule_search_locations or [])
            monkeypatch.setitem(sys.modules, package, bare)
        for stub, members in stubs.items():
            made = types.ModuleType(f"{above[0]}.utils.{stub}")
            vars(made).update(members)
            monkeypatch.setitem(sys.modules, made.__name__, made)
        return importlib.import_module(name)

    return load
