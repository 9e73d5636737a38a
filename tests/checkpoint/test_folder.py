"""A folder loads completely, in every layout and dtype, or is refused with the file and the field that is wrong.

The published models are the oracle for sizes and counts: sparse files with their names, shapes and shards.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama3.checkpoint import Checkpoint, load_folder
from llama3.config import RopeScaling
from llama3.errors import CheckpointError, Llama3Error, RequestError, TokenizerError
from llama3.llama import Llama
from llama3.tokenizer import StreamDecoder
from llama3.tokenizer_file import LLAMA3_1_SPECIAL, LLAMA3_SPECIAL
from tests.published import LLAMA_3_8B, OTHERS, Published
from tests.test_tokenizer_file import as_json, letter
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
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is I8; expected BF16, F16, F32"):
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
        ([5, 96], 128_009, {5}),  # the embedding has 96 rows: the model never gives 96
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


def tokenizer_json(names: tuple[str, ...] = LLAMA3_1_SPECIAL, *more: dict[str, Any]) -> str:
    """The vocabulary of `write_tokenizer` in Hugging Face's form, with these special tokens and more added tokens."""
    words = ["th", "the", "Ġthe", "ing"]
    content = as_json()
    letters = [letter(byte) for byte in range(256)]
    content["model"]["vocab"] = {token: rank for rank, token in enumerate([*letters, *words])}
    content["model"]["merges"] = ["t h", "th e", "Ġ the"]
    content["added_tokens"] = [{"id": FIRST_SPECIAL + i, "content": name} for i, name in enumerate(names)] + [*more]
    return json.dumps(content)


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": SCALED}], ids=["llama 3", "llama 3.1"])
def test_the_special_tokens_are_llama_3s_or_with_scaled_rope_3_1s(tmp_path: Path, changes: dict[str, Any]):
    tokenizer = load_folder(model_with_vocabulary(tmp_path, **changes)).tokenizer
    assert tokenizer is not None
    assert tuple(tokenizer.special) == (LLAMA3_1_SPECIAL if changes else LLAMA3_SPECIAL)
    assert tokenizer.special["<|begin_of_text|>"] == FIRST_SPECIAL


def test_of_two_vocabularies_tokenizer_json_counts_as_in_transformers(tmp_path: Path):
    """The other file may be a left-over, such as Llama 2's."""
    model_with_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    for left_over in (None, b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"):
        if left_over:
            (tmp_path / "tokenizer.model").write_bytes(left_over)
        checkpoint = load_folder(tmp_path)
        assert checkpoint.tokenizer is not None and tuple(checkpoint.tokenizer.special) == LLAMA3_1_SPECIAL
        stops = (LLAMA3_1_SPECIAL.index(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id"))
        assert checkpoint.stop_ids == {FIRST_SPECIAL + i for i in stops}


def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path: Path):
    model_with_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: model\.type is missing"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"content": "[PAD]", "id": TINY_VOCAB},  # the embedding was not resized
        {"content": "[PAD]", "id": TINY_VOCAB + 44},  # behind a gap
        {"content": "the", "id": 257},  # a token of text
        {"content": "the", "id": 257, "special": False},
        {"content": "<tool_call>", "id": TINY_VOCAB, "special": False},
        {"content": LLAMA3_1_SPECIAL[0], "id": FIRST_SPECIAL},  # the same again
        {"content": "", "id": TINY_VOCAB},
    ],
    ids=str,
)
def test_a_harmless_added_token_does_not_make_the_folder_unusable(tmp_path: Path, more: dict[str, Any]):
    config = tiny_config(vocab_size=TINY_VOCAB)
    write_hf(tmp_path, config, random_tensors(config))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(LLAMA3_1_SPECIAL, more))
    llama = Llama.load(tmp_path)
    question = [{"role": "user", "content": "the thing"}]
    assert llama.chat(question, max_tokens=2, temperature=0).usage.completion_tokens <= 2
    assert llama.tokenizer is not None and llama.tokenizer.decode(llama.encode("the thing")[1:]) == "the thing"
    if more["id"] >= TINY_VOCAB and more["content"]:
        with pytest.raises(RequestError, match=r"token 2 of the prompt is 516|added_tokens\.256\.id is 560, but"):
            llama.generate(f"a{more['content']}")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_ids_of_rows_without_a_token_are_empty_text(tmp_path: Path, name: str):
    """What the model gives can be decoded: a padded embedding has rows that no token has."""
    model_with_vocabulary(tmp_path, vocab_size=TINY_VOCAB + 60)
    if name == "tokenizer.json":
        (tmp_path / name).write_text(tokenizer_json())
    tokenizer = load_folder(tmp_path).tokenizer
    assert tokenizer is not None and tokenizer.vocab_size == TINY_VOCAB
    ids = [104, TINY_VOCAB, 105, np.int64(TINY_VOCAB + 59)]
    assert tokenizer.decode(ids) == "hi"
    assert TINY_VOCAB not in tokenizer and StreamDecoder(tokenizer).push(TINY_VOCAB) == ""
    with pytest.raises(TokenizerError, match=r"576 is not in the vocabulary \(0 to 575\)"):
        tokenizer.decode([TINY_VOCAB + 60])


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "model.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_a_git_lfs_pointer_is_recognised_in_every_file(tmp_path: Path, name: str):
    model_with_vocabulary(tmp_path)
    if name == "model.safetensors.index.json":
        (tmp_path / "model.safetensors").unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize 1234567890\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(Llama3Error, match=f"{name}: this is a Git LFS pointer.* run `git lfs pull`"):
        load_folder(tmp_path)


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}{{ eos_token }}{% endfor %}"
)


def write_template(folder: Path, jinja: str | None, in_config: Any, **fields: Any) -> None:
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": in_config, **fields}))


@pytest.mark.parametrize(
    ("jinja", "in_config", "refused"),
    [
        (None, None, False),
        (None, LLAMA3, False),
        (None, CHATML, True),
        (LLAMA3, None, False),
        (CHATML, None, True),
        (LLAMA3, CHATML, False),  # the file of its own counts, as in transformers
        (CHATML, LLAMA3, True),
        (None, [{"name": "tool_use", "template": CHATML}, {"name": "default", "template": LLAMA3}], False),
        (None, [{"name": "tool_use", "template": LLAMA3}, {"name": "default", "template": CHATML}], True),
    ],
)
def test_a_chat_template_of_another_kind_refuses_chats_and_nothing_else(
    tmp_path: Path, jinja: str | None, in_config: Any, refused: bool
):
    write_template(model_with_vocabulary(tmp_path), jinja, in_config, eos_token={"content": "<|eot_id|>"})
    llama = Llama.load(tmp_path)
    question = [{"role": "user", "content": "Hello"}]
    calls: list[Callable[[Any], Any]] = [llama.encode_chat, partial(llama.chat, max_tokens=1)]
    for chat in calls:
        if refused:
            with pytest.raises(RequestError, match=r"not Llama 3's \(it has <\|im_start\|>, <\|im_end\|>\)"):
                chat(question)
        else:
            chat(question)
    assert llama.generate("Hello", max_tokens=1).tokens is not None
    assert llama.logits([1, 2]).shape == llama.logits("i").shape == (2, TINY_VOCAB)


def test_the_end_of_a_turn_may_be_the_variable_eos_token(tmp_path: Path):
    write_template(model_with_vocabulary(tmp_path), LLAMA3, None, eos_token="<|end_of_text|>")
    with pytest.raises(RequestError, match=r"it lacks <\|eot_id\|>"):
        Llama.load(tmp_path).encode_chat([{"role": "user", "content": "Hello"}])


def test_a_chat_template_that_is_not_text_is_refused(tmp_path: Path):
    write_template(model_with_vocabulary(tmp_path), None, 5)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template is 5; expected text"):
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


def test_more_text_tokens_than_the_embedding_has_rows_are_refused_and_fewer_load(tmp_path: Path):
    says = r"tokenizer\.model: 260 tokens of text, but the model's embedding has 259 rows"
    with pytest.raises(CheckpointError, match=says):
        load_folder(model_with_vocabulary(tmp_path / "less", vocab_size=FIRST_SPECIAL - 1))
    assert load_folder(model_with_vocabulary(tmp_path / "some", vocab_size=TINY_VOCAB - 1)).tokenizer is not None
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
