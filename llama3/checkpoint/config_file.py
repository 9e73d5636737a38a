"""Reads a model's shape from Hugging Face's `config.json` or Meta's `params.json`."""

from collections.abc import Mapping
from typing import Any

from llama3.config import MAX_CONTEXT, ModelConfig, RopeScaling, check_number
from llama3.errors import CheckpointError


def config_from_hf(c: Mapping[str, Any]) -> ModelConfig:
    """c: the contents of a Hugging Face `config.json`. Raises CheckpointError, naming the field that is wrong."""
    if c.get("model_type", "llama") != "llama":
        raise CheckpointError(f"model_type is {c['model_type']!r}; expected 'llama'")
    for name, expected in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if c.get(name, expected) != expected:
            raise CheckpointError(f"{name} is {c[name]!r}; Llama 3 has {expected!r}")
    dim, n_heads = _get(c, "hidden_size"), _get(c, "num_attention_heads")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}  # transformers 5 writes rope_parameters
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"rope_scaling is {rope!r}; expected an object")
    return ModelConfig(
        dim=dim,
        n_layers=_get(c, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=_or(c.get("num_key_value_heads"), n_heads),
        head_dim=_head_dim(c, dim, n_heads),
        hidden_dim=_get(c, "intermediate_size"),
        vocab_size=_get(c, "vocab_size"),
        norm_eps=c.get("rms_norm_eps", 1e-6),  # the default of Hugging Face's LlamaConfig
        rope_theta=rope.get("rope_theta", c.get("rope_theta", 10_000.0)),  # also LlamaConfig's default
        max_seq_len=_limit_context(c.get("max_position_embeddings", 2048)),
        rope_scaling=_rope_scaling(rope),
        tied_embeddings=c.get("tie_word_embeddings", False),
    )


def config_from_meta(p: Mapping[str, Any]) -> ModelConfig:
    """p: the contents of Meta's `params.json`. Raises CheckpointError, naming the field that is wrong."""
    dim, n_heads, multiple_of = _get(p, "dim"), _get(p, "n_heads"), _or(p.get("multiple_of"), 256)
    if type(dim) is not int or type(multiple_of) is not int or multiple_of < 1:
        raise CheckpointError(f"dim is {dim!r} and multiple_of {multiple_of!r}; expected positive integers")
    # As in Meta's FeedForward: 2/3 of 4 dim, times ffn_dim_multiplier, rounded up to a multiple of multiple_of.
    hidden_dim = int(2 * (4 * dim) / 3)
    hidden_dim = int(check_number("ffn_dim_multiplier", _or(p.get("ffn_dim_multiplier"), 1)) * hidden_dim)
    fields = {"factor": "rope_scaling_factor", "high_freq_factor": "rope_high_freq_factor"}
    scaling = {ours: p[theirs] for ours, theirs in fields.items() if p.get(theirs)}
    return ModelConfig(
        dim=dim,
        n_layers=_get(p, "n_layers"),
        n_heads=n_heads,
        n_kv_heads=_or(p.get("n_kv_heads"), n_heads),
        head_dim=_head_dim(p, dim, n_heads),
        hidden_dim=-(-hidden_dim // multiple_of) * multiple_of,
        vocab_size=_get(p, "vocab_size"),
        norm_eps=p.get("norm_eps", 1e-5),
        rope_theta=p.get("rope_theta", 500_000.0),
        max_seq_len=_limit_context(p.get("max_seq_len", MAX_CONTEXT)),
        rope_scaling=RopeScaling(**scaling) if p.get("use_scaled_rope") else None,
    )


def _get(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise CheckpointError(f"{name} is missing")
    return fields[name]


def _or(value: Any, default: Any) -> Any:
    """The default for a field that is absent or null."""
    return default if value is None else value


def _head_dim(fields: Mapping[str, Any], dim: Any, n_heads: Any) -> Any:
    if fields.get("head_dim") is not None:
        return fields["head_dim"]
    if not isinstance(dim, int) or not isinstance(n_heads, int) or n_heads < 1 or dim % n_heads:
        raise CheckpointError(f"dim {dim!r} is not a multiple of n_heads {n_heads!r}, and head_dim is not given")
    return dim // n_heads


def _limit_context(length: Any) -> int:
    return min(length, MAX_CONTEXT) if isinstance(length, int) else length


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"rope scaling of type {kind!r} is not supported; expected 'llama3' or 'default'")
    fields = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_seq_len": "original_max_position_embeddings",
    }
    return RopeScaling(**{ours: _get(rope, theirs) for ours, theirs in fields.items()})
