"""A folder loads completely, in every layout and dtype, or is refused with the file and the field that is wrong.

The published models are the oracle for sizes and counts: sparse files with their names, shapes and shards.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama3.checkpoint import Checkpoint, load_folder
from llama3.config import RopeScaling
from llama3.errors import CheckpointError, TokenizerError
from llama3.tokenizer_file import LLAMA3_1_SPECIAL, LLAMA3_SPECIAL
from tests.published import LLAMA_3_8B, OTHERS, Published
from tests.tiny import DTYPES, TINY_VOCAB, hf_config, random_tensors, tiny_config, write_hf, write_meta, write_tokenizer

SCALED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)


def arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    w = checkpoint.weights
    found = {"tok_embeddings": w.tok_embeddings, "norm": w.norm, "output": w.output}
    return found | {f"{i}.{name}": a for i, layer in enumerate(w.layers) for name, a in vars(layer).items()}


def same(a: Checkpoint, b: Checkpoint) -> bool:
    x, y = arrays(a), arrays(b)
    return x.keys() == y.keys() and all(x[n].dtype == y[n].dtype and x[n].tobytes() == y[n].tobytes() for n in x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_one_file_shards_and_metas_layout_hold_the_same_weights(tmp_path: Path, dtype: str, tied: bool):
    config = tiny_config(tied_embeddings=tied, rope_scaling=SCALED)
    tensors = random_tensors(config, 1, dtype)
    whole = load_folder(write_hf(tmp_path / "whole", config, tensors))
    sharded = load_folder(write_hf(tmp_path / "sharded", config, tensors, shards=3))
    meta = load_folder(write_meta(tmp_path / "meta", config, tensors))
    assert whole.config == sharded.config == config
    assert meta.config == tiny_config(rope_scaling=SCALED)  # Meta's form has no tied embeddings
    assert same(whole, sharded) and same(whole, meta)
    assert (whole.layout, sharded.layout, meta.layout) == ("Hugging Face", "Hugging Face", "Meta")
    assert [len(c.files) for c in (whole, sharded, meta)] == [1, 3, 1]


def test_parameters_and_bytes_are_counted(tmp_path: Path):
    config = tiny_config(tied_embeddings=True)
    tensors = random_tensors(config, dtype="bf16")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    checkpoint = load_folder(write_hf(tmp_path / "tiny", config, tensors))
    total = sum(array.size for array in tensors.values())
    assert checkpoint.parameters == total  # the tied embedding once
    assert checkpoint.dtypes == {"bfloat16": total - config.dim, "float32": config.dim}
    assert checkpoint.size == (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert checkpoint.path == tmp_path / "tiny"


def test_a_folder_without_a_tokenizer_loads(tmp_path: Path):
    config = tiny_config()
    assert load_folder(write_hf(tmp_path, config, random_tensors(config))).tokenizer is None


@pytest.mark.parametrize("tensors_of", ["config.json", "params.json"])
def test_of_two_configs_the_one_of_the_tensors_layout_is_read(tmp_path: Path, tensors_of: str):
    config = tiny_config()
    write = write_hf if tensors_of == "config.json" else write_meta
    write(tmp_path, config, random_tensors(config))
    other = "params.json" if tensors_of == "config.json" else "config.json"
    (tmp_path / other).write_text('{"model_type": "gemma"}')  # would be refused
    assert load_folder(tmp_path).config == config


def test_metas_names_may_come_with_hugging_faces_config(tmp_path: Path):
    config = tiny_config()
    write_meta(tmp_path, config, random_tensors(config))
    (tmp_path / "params.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    assert load_folder(tmp_path).config == config


def change_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(hf_config(tiny_config()) | changes))


@pytest.mark.parametrize(
    ("change", "blamed", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "", "neither config.json nor params.json is there"),
        (lambda f: (f / "config.json").write_text("{"), "config.json", "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json", "expected a JSON object, found list"),
        (lambda f: change_config(f, model_type="gemma"), "config.json", "model_type is 'gemma'"),
        (lambda f: change_config(f, rope_scaling={"rope_type": "yarn"}), "config.json", "rope scaling of type 'yarn'"),
        (lambda f: change_config(f, num_hidden_layers=3), "model.safetensors", "9 tensors ("),
        (lambda f: change_config(f, num_hidden_layers=1), "model.safetensors", "not part of a Llama 3"),
        (lambda f: change_config(f, hidden_size=64), "model.safetensors", "the config requires (96, 64)"),
        (lambda f: change_config(f, tie_word_embeddings=True), "model.safetensors", "lm_head.weight differs"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors", "cut short"),
        (lambda f: (f / "model.safetensors").unlink(), "", "no weights"),
        (lambda f: change_config(f, eos_token_id=96), "config.json", "eos_token_id is 96; expected token ids"),
        (lambda f: change_config(f, eos_token_id=[1, -1]), "config.json", "eos_token_id is [1, -1]; expected"),
        (lambda f: change_config(f, eos_token_id=True), "config.json", "eos_token_id is True; expected"),
        (lambda f: change_config(f, eos_token_id="</s>"), "config.json", "eos_token_id is '</s>'; expected"),
        (lambda f: (f / "generation_config.json").write_text("?"), "generation_config.json", "not valid JSON"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(
    tmp_path: Path, change: Callable[[Path], Any], blamed: str, says: str
):
    config = tiny_config()
    write_hf(tmp_path, config, random_tensors(config))
    load_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_folder(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / blamed}: ") and says in message and len(message.splitlines()) == 1


def test_a_tensor_of_an_unreadable_type_is_named(tmp_path: Path):
    config = tiny_config()
    tensors = random_tensors(config)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight': dtype is 'I8'; expected BF16, F16, F32"):
        load_folder(write_hf(tmp_path, config, tensors))


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config_says", "generation_says", "stops"),
    [
        (None, None, set()),
        (5, None, {5}),
        ([5, 6], None, {5, 6}),
        (5, [6, 7], {5, 6, 7}),
        (None, 7, {7}),
    ],
)
def test_stop_ids_come_from_both_configs(tmp_path: Path, config_says: Any, generation_says: Any, stops: set[int]):
    config = tiny_config()
    write_hf(tmp_path, config, random_tensors(config))
    change_config(tmp_path, eos_token_id=config_says)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_says}))
    assert load_folder(tmp_path).stop_ids == stops


def model_with_vocabulary(folder: Path, **changes: Any) -> Path:
    config = tiny_config(**({"vocab_size": TINY_VOCAB} | changes))
    return write_tokenizer(write_hf(folder, config, random_tensors(config)))


FIRST_SPECIAL = TINY_VOCAB - 256


def added(names: tuple[str, ...], first: int = FIRST_SPECIAL) -> str:
    return json.dumps({"added_tokens": [{"id": first + i, "content": name} for i, name in enumerate(names)]})


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": SCALED}], ids=["llama 3", "llama 3.1"])
def test_the_special_tokens_are_llama_3s_or_with_scaled_rope_3_1s(tmp_path: Path, changes: dict[str, Any]):
    tokenizer = load_folder(model_with_vocabulary(tmp_path, **changes)).tokenizer
    assert tokenizer is not None
    assert tuple(tokenizer.special) == (LLAMA3_1_SPECIAL if changes else LLAMA3_SPECIAL)
    assert tokenizer.special["<|begin_of_text|>"] == FIRST_SPECIAL


def test_a_tokenizer_json_beside_the_vocabulary_names_the_special_tokens(tmp_path: Path):
    model_with_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(added(LLAMA3_1_SPECIAL))
    checkpoint = load_folder(tmp_path)
    assert checkpoint.tokenizer is not None and tuple(checkpoint.tokenizer.special) == LLAMA3_1_SPECIAL
    stops = (LLAMA3_1_SPECIAL.index(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id"))
    assert checkpoint.stop_ids == {FIRST_SPECIAL + i for i in stops}


@pytest.mark.parametrize("content", [added(LLAMA3_SPECIAL, FIRST_SPECIAL + 1), '{"added_tokens": [1]}', "{}"])
def test_a_tokenizer_json_that_does_not_fit_the_vocabulary_is_refused(tmp_path: Path, content: str):
    model_with_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_folder(tmp_path)


def test_stop_tokens_of_the_vocabulary_and_of_the_configs_are_joined(tmp_path: Path):
    model_with_vocabulary(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert load_folder(tmp_path).stop_ids == {3, FIRST_SPECIAL + 1, FIRST_SPECIAL + 9}


def test_metas_folder_of_a_hub_repository_holds_the_vocabulary_too(tmp_path: Path):
    model_with_vocabulary(tmp_path)
    (tmp_path / "original").mkdir()
    (tmp_path / "tokenizer.model").rename(tmp_path / "original" / "tokenizer.model")
    assert load_folder(tmp_path).tokenizer is not None


def test_a_vocabulary_larger_than_the_embedding_is_refused_and_a_smaller_one_loads(tmp_path: Path):
    says = r"tokenizer\.model: token ids up to 515, but the model's vocabulary has 515 tokens"
    with pytest.raises(CheckpointError, match=says):
        load_folder(model_with_vocabulary(tmp_path / "less", vocab_size=TINY_VOCAB - 1))
    assert load_folder(model_with_vocabulary(tmp_path / "more", vocab_size=TINY_VOCAB + 1)).tokenizer is not None


def test_a_broken_vocabulary_is_an_error_not_a_model_without_one(tmp_path: Path):
    model_with_vocabulary(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")  # SentencePiece's format
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: .*SentencePiece"):
        load_folder(tmp_path)


PUBLISHED_SHARDS = {  # of Meta-Llama-3-8B-Instruct, in bytes
    "model-00001-of-00004.safetensors": 4_976_698_672,
    "model-00002-of-00004.safetensors": 4_999_802_720,
    "model-00003-of-00004.safetensors": 4_915_916_176,
    "model-00004-of-00004.safetensors": 1_168_138_808,
}


def test_the_published_8b_loads_without_reading_its_16_gb(tmp_path: Path):
    LLAMA_3_8B.write(tmp_path)
    assert {file.name: file.stat().st_size for file in tmp_path.glob("*.safetensors")} == PUBLISHED_SHARDS
    checkpoint = load_folder(tmp_path)
    assert checkpoint.parameters == 8_030_261_248
    assert checkpoint.dtypes == {"bfloat16": 8_030_261_248}
    assert checkpoint.size == sum(PUBLISHED_SHARDS.values())
    assert checkpoint.stop_ids == {128001, 128009}
    assert [file.name for file in checkpoint.files] == list(PUBLISHED_SHARDS)
    assert checkpoint.weights.layers[31].w2.shape == (4096, 14336)


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_every_llama_of_the_third_generation_loads(tmp_path: Path, model: Published):
    checkpoint = load_folder(model.write(tmp_path))
    assert checkpoint.parameters == model.parameters
    assert (checkpoint.weights.output is checkpoint.weights.tok_embeddings) == model.tied
    scaling = checkpoint.config.rope_scaling
    assert (scaling.factor if scaling else None) == model.rope_factor
    assert checkpoint.config.max_seq_len == 8192


def test_one_tensor_missing_from_the_published_8b_is_named(tmp_path: Path):
    name = "model.layers.17.mlp.down_proj.weight"
    LLAMA_3_8B.write(tmp_path, without=name)
    with pytest.raises(CheckpointError) as caught:
        load_folder(tmp_path)
    assert str(caught.value) == f"{tmp_path}/model.safetensors.index.json: tensor {name!r} is missing"
