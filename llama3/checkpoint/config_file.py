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
    if c.get("per_layer_config"):
        found = repr(c["per_layer_config"])[:60]
        raise CheckpointError(f"per_layer_config is {found}; expected none: all layers of Llama 3 are alike")
    kinds = _or(c.get("layer_types"), [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"layer_types is {repr(kinds)[:60]}; Llama 3 has 'full_attention' only")
    rope = _rope(c)
    return ModelConfig(
        dim=dim,
        n_layers=_get(c, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=_or(c.get("num_key_value_heads"), n_heads),
        head_dim=_head_dim(c, dim, n_heads),
        hidden_dim=_get(c, "intermediate_size"),
        vocab_size=_get(c, "vocab_size"),
        norm_eps=c.get("rms_norm_eps", 1e-6),  # the default of Hugging Face's LlamaConfig
        rope_theta=_rope_theta(c, rope),
        max_seq_len=_limit_context(c.get("max_position_embeddings", 2048)),
        rope_scaling=_rope_scaling(c, rope),
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
        rope_scaling=_meta_rope_scaling(p),
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


def _rope(c: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that describes RoPE: rope_scaling or, if that is absent or empty, rope_parameters.

    transformers 5 writes rope_parameters. If a file has both, it reads rope_scaling, as transformers 4 does.
    """
    for name in ("rope_scaling", "rope_parameters"):
        found = c.get(name)
        if found is not None and not isinstance(found, Mapping):
            raise CheckpointError(f"{name} is {found!r}; expected an object")
        for key, value in (found or {}).items():
            if isinstance(value, Mapping):
                raise CheckpointError(f"{name}.{key} is an object; expected one RoPE for all layers, as Llama 3 has")
        for place, fields in (("", c), (f"{name}.", found or {})):
            if fields.get("partial_rotary_factor") not in (None, 1):
                factor = fields["partial_rotary_factor"]
                raise CheckpointError(f"{place}partial_rotary_factor is {factor!r}; Llama 3 rotates the whole head: 1")
    return c.get("rope_scaling") or c.get("rope_parameters") or {}


def _rope_theta(c: Mapping[str, Any], rope: Mapping[str, Any]) -> Any:
    """The base of RoPE's frequencies. Raises CheckpointError if the file gives different values in different places."""
    theta = rope.get("rope_theta", c.get("rope_theta", 10_000.0))  # the default of LlamaConfig
    for name in ("rope_theta", "rope_scaling.rope_theta", "rope_parameters.rope_theta"):
        place, _, key = name.rpartition(".")
        found = (c.get(place) or {}).get(key) if place else c.get(key)
        if found is not None and found != theta:
            raise CheckpointError(
                f"{name} is {found!r}, but transformers reads {theta!r} from this file: give the same rope_theta "
                "everywhere"
            )
    return theta


def _rope_scaling(c: Mapping[str, Any], rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"rope scaling of type {kind!r} is not supported; expected 'llama3' or 'default'")
    fields = {name: _get(rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    name = "original_max_position_embeddings"  # beside the other fields or in `rope`; default: the context length
    outside, inside = c.get(name), rope.get(name)
    if outside is not None and inside is not None and outside != inside:
        raise CheckpointError(f"{name} is {outside!r}, but inside the RoPE parameters {inside!r}: give it once")
    length = _or(outside, _or(inside, c.get("max_position_embeddings", 2048)))
    return RopeScaling(**fields, original_max_seq_len=length)


def _meta_rope_scaling(p: Mapping[str, Any]) -> RopeScaling | None:
    """The RoPE scaling in params.json. Raises CheckpointError if the factor is missing: it differs between models."""
    scaled = _or(p.get("use_scaled_rope"), False)
    if not isinstance(scaled, bool):
        raise CheckpointError(f"use_scaled_rope is {scaled!r}; expected true or false")
    if not scaled:
        return None
    if p.get("rope_scaling_factor") is None:
        raise CheckpointError(
            "use_scaled_rope is true, but rope_scaling_factor is missing: add it (Llama 3.1 and 3.3 have 8, Llama 3.2 "
            "has 32), or take the model in Hugging Face's form"
        )
    high = p.get("rope_high_freq_factor")
    return RopeScaling(factor=p["rope_scaling_factor"], **({} if high is None else {"high_freq_factor": high}))
