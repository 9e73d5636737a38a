"""Files of `llama3 quantize` in transformers with compressed-tensors: the same config fields, codes and logits."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from transformers import AutoModelForCausalLM

from llama3 import Llama
from llama3.quantize import quantize
from llama3.quantize.packing import pack, quantization_config
from llama3.resources import resource
from tests.pages import ROOT
from tests.tiny import random_tensors, tiny_config, write_hf


def assert_same_logits(folder: Path, vocab_size: int) -> None:
    tokens = np.random.RandomState(0).randint(0, vocab_size, 64)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = model(torch.tensor(tokens[None])).logits[0].double().numpy()
    ours = Llama.load(folder).logits(tokens.tolist()).astype(np.float64)
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() <= 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_transformers_has_the_same_logits_from_the_demo(tmp_path: Path, bits: int):
    assert_same_logits(quantize(resource("weights", "demo"), tmp_path / "new", bits), 2048)


@pytest.mark.parametrize(("dims", "width"), [((192, 4, 64, 320), 64), ((96, 3, 32, 172), None)])
def test_transformers_has_the_same_logits_with_other_groups(tmp_path: Path, dims: tuple[int, ...], width: int | None):
    dim, n_heads, head_dim, hidden_dim = dims
    config = tiny_config(dim=dim, n_heads=n_heads, n_kv_heads=1, head_dim=head_dim, hidden_dim=hidden_dim)
    folder = quantize(write_hf(tmp_path / "model", config, random_tensors(config, dtype="bf16")), tmp_path / "new", 4)
    weights = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert weights["weights"]["group_size"] == width
    assert_same_logits(folder, config.vocab_size)


@pytest.mark.parametrize(("bits", "width"), [(8, None), (4, 128), (4, None)])
def test_config_has_the_librarys_fields(bits: int, width: int | None):
    strategy = "group" if width else "channel"
    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy=strategy, group_size=width, dynamic=False
    )
    group = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    theirs = QuantizationConfig(
        config_groups=group, format="pack-quantized", ignore=["lm_head"], quantization_status="compressed"
    )
    fields, ours = json.loads(theirs.model_dump_json()), quantization_config(bits, width)
    assert {name: value for name, value in fields.items() if name in ours} == ours
    assert all(value is None for name, value in fields.items() if name not in ours)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("n_in", [128, 172, 30])
def test_codes_are_packed_as_the_library_packs_them(bits: int, n_in: int):
    top = 2 ** (bits - 1)
    codes = np.random.RandomState(0).randint(-top, top, (6, n_in))
    theirs = pack_to_int32(torch.tensor(codes, dtype=torch.int8), bits).numpy()
    assert np.array_equal(pack(codes.astype(np.float32), bits).view(np.int32), theirs)


def test_the_demo_in_8_bits_stays_within_a_thousandth_of_a_nat(tmp_path: Path):
    """At each token of its answers to every ninth held-out question; `benchmarks/quantize.py` takes all of them."""
    full, demo = Llama.load(), resource("weights", "demo")
    small = Llama.load(quantize(demo, tmp_path / "new", 8))
    lines = (ROOT / "weights/training/held_out.tsv").read_text(encoding="utf-8").splitlines()
    kl, same = [], []
    for line in lines[::9]:
        messages = [{"role": "user", "content": line.split("\t")[1]}]
        prompt = full.encode_chat(messages)
        text = [*prompt, *full.chat(messages, temperature=0, max_tokens=64).tokens]
        p, q = (torch.log_softmax(torch.tensor(llama.logits(text)).double(), 1) for llama in (full, small))
        p, q = p[len(prompt) - 1 :], q[len(prompt) - 1 :]
        kl += (p.exp() * (p - q)).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
    assert len(kl) > 300 and np.mean(kl) <= 1e-3 and np.mean(same) >= 0.99
