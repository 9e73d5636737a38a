"""The published configurations are read from both forms, and a wrong field is refused by its name."""

import dataclasses

import pytest

from llama3.checkpoint.config_file import config_from_hf, config_from_meta
from llama3.config import ModelConfig, RopeScaling
from llama3.errors import CheckpointError

HF_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
}
META_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_published_8b_is_the_same_from_both_forms():
    expected = ModelConfig(4096, 32, 32, 8, 128, 14336, 128256, 1e-5, 500_000.0, 8192)
    assert config_from_hf(HF_8B) == expected
    assert config_from_meta(META_8B) == expected


@pytest.mark.parametrize(
    "dim, n_layers, n_heads, multiple_of, multiplier, hidden_dim",
    [(8192, 80, 64, 4096, 1.3, 28672), (2048, 16, 32, 256, 1.5, 8192), (3072, 28, 24, 256, 1.0, 8192)],
    ids=["70B", "3.2 1B", "3.2 3B"],
)
def test_meta_s_hidden_dim_follows_from_its_multipliers(dim, n_layers, n_heads, multiple_of, multiplier, hidden_dim):
    params = META_8B | {"dim": dim, "n_layers": n_layers, "n_heads": n_heads}
    params |= {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    assert config_from_meta(params).hidden_dim == hidden_dim


def test_rope_scaling_is_read_under_its_old_and_its_new_name():
    old = HF_8B | {"rope_scaling": LLAMA3_SCALING}
    new = {k: v for k, v in HF_8B.items() if k != "rope_theta"}
    new |= {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 500000.0}}
    assert config_from_hf(old) == config_from_hf(new)
    assert config_from_hf(old).rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    scaled = {"use_scaled_rope": True, "rope_scaling_factor": 32}
    assert config_from_meta(META_8B | scaled).rope_scaling == RopeScaling(32, 1.0, 4.0, 8192)


def test_rope_scaling_counts_before_rope_parameters_as_in_transformers():
    default = {"rope_type": "default", "rope_theta": 500000.0}
    both = HF_8B | {"rope_scaling": LLAMA3_SCALING, "rope_parameters": default}
    assert config_from_hf(both).rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    other = HF_8B | {"rope_scaling": default, "rope_parameters": LLAMA3_SCALING}
    assert config_from_hf(other).rope_scaling is None
    assert config_from_hf(HF_8B | {"rope_scaling": {}, "rope_parameters": LLAMA3_SCALING}).rope_scaling


def test_the_length_before_scaling_may_stand_outside_or_be_the_context():
    scaling = {k: v for k, v in LLAMA3_SCALING.items() if k != "original_max_position_embeddings"}
    config = HF_8B | {"rope_scaling": scaling, "max_position_embeddings": 131072}
    assert config_from_hf(config).rope_scaling == RopeScaling(32.0, 1.0, 4.0, 131072)
    config["original_max_position_embeddings"] = 8192
    assert config_from_hf(config).rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("other", [None, "rope_scaling", "rope_parameters"])
def test_two_places_that_disagree_about_rope_theta_are_refused(place, other):
    config = HF_8B | ({other: {"rope_type": "default"}} if other else {})
    config[place] = {"rope_type": "default", "rope_theta": 10000.0}
    with pytest.raises(CheckpointError, match=r"rope_theta is .*, but transformers reads"):
        config_from_hf(config)


def test_a_longer_context_is_limited_to_8192_tokens():
    assert config_from_hf(HF_8B | {"max_position_embeddings": 131072}).max_seq_len == 8192
    assert config_from_hf(HF_8B | {"max_position_embeddings": 2048}).max_seq_len == 2048


def test_head_dim_need_not_be_dim_over_heads():
    assert config_from_hf(HF_8B | {"head_dim": 64}).head_dim == 64
    assert config_from_meta(META_8B | {"head_dim": 64, "dim": 4100}).head_dim == 64


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": "4096"}, "'4096'"),
        ({"hidden_size": 4095}, "4095"),
        ({"num_hidden_layers": 0}, "n_layers is 0"),
        ({"num_hidden_layers": True}, "n_layers is True"),
        ({"num_key_value_heads": 5}, "n_kv_heads 5"),
        ({"num_key_value_heads": 0}, "n_kv_heads is 0"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"rms_norm_eps": float("nan")}, "norm_eps is nan"),
        ({"rms_norm_eps": None}, "norm_eps is None"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"max_position_embeddings": None}, "max_seq_len is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": "8"}}, "factor is '8'"),
        ({"rope_scaling": LLAMA3_SCALING | {"low_freq_factor": 4.0}}, "rope scaling is RopeScaling(factor="),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": float("inf")}}, "factor is inf"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ({"rope_scaling": [8.0]}, "rope_scaling is [8.0]"),
        ({"rope_parameters": 8.0}, "rope_parameters is 8.0"),
        ({"rope_parameters": {"full_attention": {"rope_type": "llama3"}}}, "rope_parameters.full_attention is an obj"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor is 0.5"),
        (
            {"rope_scaling": LLAMA3_SCALING, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings is 4096, but inside",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_named(change, named):
    with pytest.raises(CheckpointError) as error:
        config_from_hf(HF_8B | change)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_a_missing_field_is_named(name):
    with pytest.raises(CheckpointError, match=f"^{name} is missing$"):
        config_from_hf({k: v for k, v in HF_8B.items() if k != name})


@pytest.mark.parametrize(
    "change, named",
    [
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier is '1.3'"),
        ({"ffn_dim_multiplier": float("nan")}, "ffn_dim_multiplier is nan"),
        ({"multiple_of": True}, "multiple_of True"),
        ({"use_scaled_rope": True, "rope_scaling_factor": "8"}, "factor is '8'"),
        ({"use_scaled_rope": True, "rope_scaling_factor": 0}, "factor=0"),
        ({"use_scaled_rope": True}, "rope_scaling_factor is missing: add it (Llama 3.1 and 3.3 have 8"),
        ({"use_scaled_rope": "false"}, "use_scaled_rope is 'false'"),
        ({"dim": "4096"}, "dim is '4096'"),
    ],
)
def test_a_wrong_field_of_meta_s_is_named(change, named):
    with pytest.raises(CheckpointError) as error:
        config_from_meta(META_8B | change)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dim", "n_layers", "n_heads", "vocab_size"])
def test_a_missing_field_of_meta_s_is_named(name):
    with pytest.raises(CheckpointError, match=f"^{name} is missing$"):
        config_from_meta({k: v for k, v in META_8B.items() if k != name})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_from_hf(HF_8B).dim = 1  # type: ignore[misc]
