"""Every variant of config.json gives transformers' logits within 1e-5, or is refused with the name of the field.

Most variants say something in two places: rope_scaling, rope_parameters, and fields beside them.
"""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llama3.checkpoint import load_folder
from llama3.errors import CheckpointError
from llama3.model.batch import Batch
from llama3.model.transformer import Transformer
from tests.tiny import hf_config, random_tensors, tiny_config, write_hf

TOKENS = list(range(1, 81))
NOT_GIVEN: Any = object()
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT = LLAMA3 | {"original_max_position_embeddings": 32}
DEFAULT = {"rope_type": "default"}

ROPE = [
    {"rope_scaling": scaling, "rope_parameters": parameters, "rope_theta": theta}
    for scaling, parameters, theta in itertools.product(
        [NOT_GIVEN, None, {}, DEFAULT, SHORT, SHORT | {"rope_theta": 500_000.0}, {**LLAMA3, "type": "linear"}],
        [
            NOT_GIVEN,
            {},
            DEFAULT | {"rope_theta": 500_000.0},
            SHORT | {"rope_theta": 500_000.0},
            SHORT | {"factor": 2.0},
        ],
        [NOT_GIVEN, 10_000.0, 500_000],
    )
]
OTHERS: list[dict[str, Any]] = [
    {"rope_scaling": LLAMA3},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
    {"rope_scaling": SHORT, "original_max_position_embeddings": 64},
    {"rope_scaling": {"type": "llama3", **{k: v for k, v in SHORT.items() if k != "rope_type"}}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    {"rope_scaling": {"factor": 2.0}},
    {"rope_scaling": SHORT | {"partial_rotary_factor": 0.5}},
    {"rope_scaling": SHORT | {"attention_factor": 2.0, "mscale": 1.0}},
    {"rope_scaling": SHORT, "partial_rotary_factor": 0.5},
    {"rope_parameters": {"full_attention": SHORT, "sliding_attention": DEFAULT}},
    {"partial_rotary_factor": 1.0},
    {"head_dim": NOT_GIVEN},
    {"head_dim": None},
    {"head_dim": 8},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": NOT_GIVEN},
    {"tie_word_embeddings": None},
    {"rms_norm_eps": NOT_GIVEN},
    {"rms_norm_eps": None},
    {"rms_norm_eps": 0.1},
    {"rms_norm_eps": "1e-5"},
    {"num_key_value_heads": NOT_GIVEN},
    {"num_key_value_heads": None},
    {"rope_theta": None},
    {"rope_theta": None, "rope_parameters": SHORT | {"rope_theta": 500_000.0}},
    {"max_position_embeddings": NOT_GIVEN},
    {"max_position_embeddings": 100},
    {"max_position_embeddings": 131_072, "rope_scaling": LLAMA3},
    {"attention_bias": True},
    {"attention_bias": None},
    {"attention_bias": NOT_GIVEN},
    {"mlp_bias": True},
    {"hidden_act": "gelu"},
    {"hidden_act": "swish"},
    {"hidden_act": NOT_GIVEN},
    {"model_type": "mistral"},
    {"vocab_size": NOT_GIVEN},
    {"hidden_size": NOT_GIVEN},
    {"intermediate_size": NOT_GIVEN},
    {"num_hidden_layers": 1},
    {"architectures": NOT_GIVEN},
    {"architectures": ["LlamaModel"]},
    {"pretraining_tp": 2},
    {"sliding_window": 4},
    {"layer_types": ["sliding_attention", "full_attention"]},
    {"layer_types": ["full_attention", "full_attention"]},
    {"quantization_config": None},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"per_layer_config": {"1": {"intermediate_size": 40}}},
    *({"torch_dtype": name} for name in ("float32", "float16", "bfloat16")),
    *({"dtype": name} for name in ("float32", "float16", "bfloat16")),
]


@cache
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(tiny_config(), 3)


def write(folder: Path, change: dict[str, Any]) -> Path:
    config = tiny_config()
    content = hf_config(config) | change
    content = {name: value for name, value in content.items() if value is not NOT_GIVEN}
    held = dict(tensors())
    if content.get("tie_word_embeddings"):
        del held["lm_head.weight"]
    write_hf(folder, config, held)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def show(change: dict[str, Any]) -> str:
    return json.dumps({name: "not given" if value is NOT_GIVEN else value for name, value in change.items()})


@pytest.mark.parametrize("change", ROPE + OTHERS, ids=show)
def test_the_logits_are_transformers_or_the_field_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path, change)
    try:
        checkpoint = load_folder(folder)
    except CheckpointError as error:
        named = [
            *change,
            "rope scaling",
            "norm_eps",
            "max_seq_len",
            "dim",
            "the config",
            "n_kv_heads",
            "of this config",
        ]
        assert any(name in str(error) for name in named), error
        return
    ours = Transformer(checkpoint.config, checkpoint.weights)
    cache = ours.new_cache(1, len(TOKENS))
    logits = ours.forward(Batch.of([(cache.allocate(), TOKENS)]), cache, np.arange(len(TOKENS)))
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_transformers_writes_loads(tmp_path: Path) -> None:
    """The same model, written by transformers in its own newest form."""
    model = transformers.LlamaForCausalLM.from_pretrained(write(tmp_path / "a", {"rope_scaling": SHORT}))
    model.save_pretrained(tmp_path / "b")
    assert "rope_parameters" in json.loads((tmp_path / "b" / "config.json").read_text())
    assert load_folder(tmp_path / "b").config == load_folder(tmp_path / "a").config
