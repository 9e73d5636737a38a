"""An adapter that fits its base model is loaded; any other is refused, with its file and what is wrong with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from llama3 import Llama
from llama3.checkpoint import load_adapter
from llama3.errors import CheckpointError
from tests.tiny import random_adapter, random_tensors, tiny_config, write_adapter, write_hf

CONFIG = tiny_config()
Q = "base_model.model.model.layers.1.self_attn.q_proj"
FOUR = np.zeros((4, 48), "f4")


def test_every_matrix_of_every_layer_is_read_and_scaled(tmp_path: Path):
    tensors = random_adapter(CONFIG)
    found = load_adapter(write_adapter(tmp_path, tensors), CONFIG)
    assert len(found) == CONFIG.n_layers and all(len(layer) == 7 for layer in found)
    assert np.array_equal(found[1]["wq"].a, tensors[f"{Q}.lora_A.weight"])
    assert np.array_equal(found[1]["wq"].b, 2 * tensors[f"{Q}.lora_B.weight"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected 'LORA'"),
        ({"r": 65}, "r is 65; expected a rank from 1 to 64"),
        ({"r": None}, "r is None"),
        ({"r": True}, "r is True"),
        ({"r": 3}, r"lora_A.weight' has the shape \(4, 80\); expected \(3, 80\) for rank 3"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'; expected a number"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"use_dora": True}, "use_dora is True; expected false: only plain LoRA is supported"),
        ({"bias": "all"}, "bias is 'all'; expected \"none\""),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base, too"),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights is"),
    ],
)
def test_what_is_not_plain_lora_is_refused(tmp_path: Path, fields, says):
    with pytest.raises(CheckpointError, match=says):
        load_adapter(write_adapter(tmp_path, random_adapter(CONFIG), **fields), CONFIG)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), r"layers.1.self_attn.q_proj.lora_B.weight' is missing"),
        (lambda t: [t.pop(f"{Q}.lora_{x}.weight") for x in "AB"], "no matrices for q_proj of layer 1"),
        (lambda t: t.update({f"{Q}.lora_B.weight": FOUR}), r"lora_B.weight' has the shape \(4, 48\)"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": FOUR}), "'base_model.model.lm"),
        (lambda t: t.update({Q.replace("1", "2") + ".lora_A.weight": FOUR}), "the model has 2 layers"),
        (lambda t: t[f"{Q}.lora_A.weight"].fill(np.nan), "is not finite"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, change, says):
    tensors = dict(random_adapter(CONFIG))
    folder = write_adapter(tmp_path, tensors)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        load_adapter(folder, CONFIG)


def test_another_base_is_refused(tmp_path: Path):
    folder = write_adapter(tmp_path, random_adapter(tiny_config(dim=64)))
    with pytest.raises(CheckpointError, match="another base model"):
        load_adapter(folder, CONFIG)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_missing_or_cut_short_is_named(tmp_path: Path, name: str):
    file = write_adapter(tmp_path, random_adapter(CONFIG)) / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=name):
        load_adapter(tmp_path, CONFIG)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        load_adapter(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="no such folder; an adapter is a folder with"):
        load_adapter(tmp_path / "nowhere", CONFIG)


def test_one_adapter_that_does_not_fit_is_an_error_for_all(tmp_path: Path):
    base = write_hf(tmp_path / "base", CONFIG, random_tensors(CONFIG))
    good = write_adapter(tmp_path / "good", random_adapter(CONFIG))
    bad = write_adapter(tmp_path / "bad", random_adapter(CONFIG), r=0)
    assert Llama.load(base, lora={"good": good}).adapters == ("good",)
    with pytest.raises(CheckpointError, match="r is 0"):
        Llama.load(base, lora={"good": good, "bad": bad})


def test_unknown_fields_of_newer_versions_are_accepted(tmp_path: Path):
    folder = write_adapter(tmp_path, random_adapter(CONFIG), peft_version="9.9", auto_mapping=None, runtime_config={})
    assert json.loads((folder / "adapter_config.json").read_text())["peft_version"] == "9.9"
    load_adapter(folder, CONFIG)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_git_lfs_pointer_is_recognised(tmp_path: Path, name: str):
    write_adapter(tmp_path, random_adapter(CONFIG))
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CheckpointError, match=f"{name}: this is a Git LFS pointer"):
        load_adapter(tmp_path, CONFIG)
