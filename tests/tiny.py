"""Writes tiny checkpoints with seeded random weights, in both layouts and every dtype, for tests that need a model."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from llama3.config import ModelConfig

DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
Tensors = Mapping[str, np.ndarray]  # by Hugging Face's names
MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def tiny_config(**changes: Any) -> ModelConfig:
    """Grouped-query attention with 4 query heads and 2 kv heads. head_dim differs from dim / n_heads, so that a test
    notices if they are confused.
    """
    fields: dict[str, Any] = {
        "dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "hidden_dim": 80,
        "vocab_size": 96,
        "max_seq_len": 256,
    }
    return ModelConfig(**(fields | changes))


def random_tensors(config: ModelConfig, seed: int = 0, dtype: str = "fp32") -> dict[str, np.ndarray]:
    """Every tensor by Hugging Face's name; dtype: "fp32", "fp16" or "bf16". There is no lm_head if it is tied."""
    random = np.random.RandomState(seed)  # NumPy guarantees its stream, so numbers written in a test stay true

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(DTYPES[dtype])

    def norm() -> np.ndarray:
        return random.uniform(0.5, 1.5, config.dim).astype(DTYPES[dtype])

    c = config
    tensors = {"model.embed_tokens.weight": matrix(c.vocab_size, c.dim)}
    for i in range(c.n_layers):
        layer = {
            "input_layernorm": norm(),
            "self_attn.q_proj": matrix(c.n_heads * c.head_dim, c.dim),
            "self_attn.k_proj": matrix(c.n_kv_heads * c.head_dim, c.dim),
            "self_attn.v_proj": matrix(c.n_kv_heads * c.head_dim, c.dim),
            "self_attn.o_proj": matrix(c.dim, c.n_heads * c.head_dim),
            "post_attention_layernorm": norm(),
            "mlp.gate_proj": matrix(c.hidden_dim, c.dim),
            "mlp.down_proj": matrix(c.dim, c.hidden_dim),
            "mlp.up_proj": matrix(c.hidden_dim, c.dim),
        }
        tensors |= {f"model.layers.{i}.{name}.weight": array for name, array in layer.items()}
    tensors["model.norm.weight"] = norm()
    if not c.tied_embeddings:
        tensors["lm_head.weight"] = matrix(c.vocab_size, c.dim)
    return tensors


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of a Hugging Face `config.json`."""
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
    }
    if scaling := config.rope_scaling:
        fields["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    return fields


def write_hf(folder: Path, config: ModelConfig, tensors: Tensors, shards: int = 1) -> Path:
    """Write config.json and model.safetensors, or shards and their index. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    if shards == 1:
        safetensors.numpy.save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        safetensors.numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_meta(folder: Path, config: ModelConfig, tensors: Tensors) -> Path:
    """Write params.json and consolidated.safetensors: the same model under Meta's names, with interleaved wq and wk.

    Meta's form has no tied embeddings, so the table is written twice. `params.json` determines hidden_dim only through
    multiple_of and ffn_dim_multiplier, so a pair is chosen that leads to this hidden_dim.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": config.hidden_dim / (8 * config.dim / 3),
        "multiple_of": config.hidden_dim,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_seq_len": config.max_seq_len,
    }
    if scaling := config.rope_scaling:
        params |= {
            "use_scaled_rope": True,
            "rope_scaling_factor": scaling.factor,
            "rope_high_freq_factor": scaling.high_freq_factor,
        }
    (folder / "params.json").write_text(json.dumps(params))
    renamed = {meta_name(name): interleave(array, config, name) for name, array in tensors.items()}
    renamed.setdefault("output.weight", renamed["tok_embeddings.weight"].copy())
    safetensors.numpy.save_file(renamed, folder / "consolidated.safetensors")
    return folder


def meta_name(name: str) -> str:
    for hf, meta in (
        ("model.", ""),
        ("embed_tokens", "tok_embeddings"),
        ("lm_head", "output"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attention.wq"),
        ("self_attn.k_proj", "attention.wk"),
        ("self_attn.v_proj", "attention.wv"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("mlp.up_proj", "feed_forward.w3"),
    ):
        name = name.replace(hf, meta)
    return name


def interleave(array: np.ndarray, config: ModelConfig, name: str) -> np.ndarray:
    """In each head of q and k, rows i and i + head_dim / 2 become rows 2i and 2i + 1. Other tensors are unchanged."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    half = config.head_dim // 2
    order = [head + i + j for head in range(0, len(array), 2 * half) for i in range(half) for j in (0, half)]
    return np.ascontiguousarray(array[order])


def random_adapter(config: ModelConfig, seed: int = 0, rank: int = 4, modules: Sequence[str] = MODULES) -> Tensors:
    """The tensors of an adapter, by PEFT's names, for these modules in every layer. No matrix is zero."""
    random, tensors = np.random.RandomState(seed), {}
    matrices = random_tensors(config)
    for i in range(config.n_layers):
        for module in modules:
            out, width = matrices[f"model.layers.{i}.{module}.weight"].shape
            prefix = f"base_model.model.model.layers.{i}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = (random.standard_normal((rank, width)) / width**0.5).astype("f4")
            tensors[f"{prefix}.lora_B.weight"] = (random.standard_normal((out, rank)) / rank**0.5).astype("f4")
    return tensors


def write_adapter(folder: Path, tensors: Tensors, **fields: Any) -> Path:
    """Write adapter_config.json and adapter_model.safetensors. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = len(next(array for name, array in tensors.items() if "lora_A" in name))
    modules = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    safetensors.numpy.save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def merged(tensors: Tensors, adapter: Tensors, scale: float) -> dict[str, np.ndarray]:
    """The model's tensors with the adapter added to them. The sum is computed in float64."""
    out = dict(tensors)
    for name, a in adapter.items():
        if "lora_A" in name:
            base = name.removeprefix("base_model.model.").replace("lora_A.", "")
            b = adapter[name.replace("lora_A", "lora_B")].astype("f8")
            out[base] = (tensors[base] + scale * (b @ a.astype("f8"))).astype(tensors[base].dtype)
    return out


def write_tokenizer(folder: Path, words: tuple[str, ...] = ("th", "the", " the", "ing")) -> Path:
    """A `tokenizer.model` in tiktoken's format: the 256 bytes, then these words; 256 special tokens follow on load."""
    tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


TINY_VOCAB = 516  # 256 bytes, 4 words, 256 special tokens
