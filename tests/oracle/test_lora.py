"""Adapters that PEFT has saved give the logits that PEFT computes with them on transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from llama3 import Llama
from llama3.errors import CheckpointError
from llama3.model.batch import Batch
from tests.tiny import random_tensors, tiny_config, write_hf

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 16, "lora_alpha": 32, "target_modules": MODULES},
        {"r": 64, "lora_alpha": 16, "target_modules": "all-linear", "use_rslora": True},
        {"r": 1, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
        {"r": 8, "lora_alpha": 8, "target_modules": MODULES[3:], "layers_to_transform": [1]},
        {"r": 8, "lora_alpha": 8, "target_modules": MODULES, "init_lora_weights": "orthogonal"},
    ],
)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_logits_are_within_1e_5_of_pefts(tmp_path: Path, settings, kind) -> None:
    config = tiny_config()
    base = write_hf(tmp_path / "base", config, random_tensors(config, 5, kind))
    torch.manual_seed(7)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # PEFT initialises it with zeros, which would prove nothing
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")

    tokens = np.random.RandomState(3).randint(0, config.vocab_size, 50)
    with torch.inference_mode():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
        with model.disable_adapter():
            plain = model(torch.tensor(tokens[None])).logits[0].numpy()
    llama = Llama.load(base, lora={"x": tmp_path / "adapter"})
    for name, reference in (("x", expected), (None, plain)):
        batch = Batch.of([(0, tokens)], [name])
        found = llama.model.forward(batch, llama.model.new_cache(1, 64), np.arange(50))
        error = np.linalg.norm(found - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
        assert error.max() <= 1e-5, error.max()
    assert np.linalg.norm(expected - plain) > 0.05 * np.linalg.norm(plain)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_refused_until_peft_has_made_it_plain(tmp_path: Path, start: str) -> None:
    config, tokens = tiny_config(), np.arange(30)
    base = write_hf(tmp_path / "base", config, random_tensors(config, 5))
    settings = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=8, target_modules=MODULES, init_lora_weights=start)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    model.peft_config["default"].init_lora_weights = True  # PEFT requires this for the weights to convert from
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    with torch.inference_mode():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
    model.save_pretrained(tmp_path / "as_it_is")
    with pytest.raises(CheckpointError, match=f"init_lora_weights is '{start}'"):
        Llama.load(base, lora={"x": tmp_path / "as_it_is"})
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start")
    llama = Llama.load(base, lora={"x": tmp_path / "plain"})
    found = llama.model.forward(Batch.of([(0, tokens)], ["x"]), llama.model.new_cache(1, 64), np.arange(30))
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() <= 1e-5, error.max()
