"""A saved prompt: its keys and values are not computed again, and only the model that made it accepts it."""

import os

import numpy as np
import pytest
import safetensors.numpy

from llama3 import CheckpointError, Llama, RequestError
from tests.tiny import (
    TINY_VOCAB,
    random_adapter,
    random_tensors,
    tiny_config,
    write_adapter,
    write_hf,
    write_tokenizer,
)

CONFIG = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=1024)
LONG = "The system says how to answer. " * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(write_hf(tmp_path_factory.mktemp("model") / "tiny", CONFIG, random_tensors(CONFIG)))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"), random_adapter(CONFIG, 3))


def rows_of(llama, monkeypatch):
    """The numbers of tokens that the model computes from now on, step by step."""
    rows, forward = [], llama.model.forward

    def counted(batch, *rest):
        rows.append(len(batch.tokens))
        return forward(batch, *rest)

    monkeypatch.setattr(llama.model, "forward", counted)
    return rows


@pytest.mark.parametrize("slots", [1, 3])
def test_a_loaded_prefix_is_reused_and_the_answer_is_the_same(folder, tmp_path, monkeypatch, slots):
    Llama.load(folder).save_prefix(tmp_path / "p", LONG)
    llama = Llama.load(folder, slots=slots)
    tokens = llama.load_prefix(tmp_path / "p")
    assert tokens == llama.encode(LONG)
    rows = rows_of(llama, monkeypatch)
    parameters = {"max_tokens": 10, "seed": 1}
    found = llama.generate([*tokens, 5, 6], **parameters)
    assert rows[0] == 2
    assert found == Llama.load(folder).generate([*tokens, 5, 6], **parameters)


def test_other_prompts_leave_a_prefix_in_its_slot(folder, tmp_path, monkeypatch):
    llama = Llama.load(folder, slots=2)
    llama.save_prefix(tmp_path / "p", LONG)
    tokens = llama.load_prefix(tmp_path / "p")
    for text in ("Once", "Twice"):
        llama.generate(text, max_tokens=2)
    rows = rows_of(llama, monkeypatch)
    together = [llama.stream([*tokens, token], max_tokens=2) for token in (5, 6)]
    for stream in together:
        stream.completion()
    assert max(rows) == 2


def test_a_prefix_belongs_to_its_adapter(folder, adapter, tmp_path, monkeypatch):
    maker = Llama.load(folder, lora={"mine": adapter})
    maker.save_prefix(tmp_path / "p", LONG, lora="mine")
    llama = Llama.load(folder, lora={"other": adapter})  # the same adapter under another name
    tokens = llama.load_prefix(tmp_path / "p")
    rows = rows_of(llama, monkeypatch)
    parameters = {"max_tokens": 5, "seed": 1}
    expected = maker.generate(tokens, lora="mine", **parameters)
    assert llama.generate(tokens, lora="other", **parameters) == expected and rows[0] == 1
    rows.clear()
    assert llama.generate(tokens, **parameters) != expected and rows[0] == len(tokens)
    with pytest.raises(CheckpointError, match="made with a LoRA adapter that is not loaded; loaded: none"):
        Llama.load(folder).load_prefix(tmp_path / "p")


def test_a_prefix_of_another_model_is_refused_by_name(folder, tmp_path):
    Llama.load(folder).save_prefix(tmp_path / "p", "Once")
    finer = random_tensors(CONFIG)
    for name in finer:  # a fine-tune: every matrix is a little different, and the shape is the same
        if name.endswith("o_proj.weight"):
            finer[name] = finer[name] * np.float32(1.01)
    for name, config, tensors, differs in (
        ("tuned", CONFIG, finer, "the weights differ"),
        ("shorter", tiny_config(vocab_size=TINY_VOCAB, max_seq_len=512), random_tensors(CONFIG), "the shape differs"),
    ):
        other = Llama.load(write_hf(tmp_path / name, config, tensors))
        with pytest.raises(CheckpointError) as error:
            other.load_prefix(tmp_path / "p")
        assert f"made by the model 'tiny', and this is '{name}': {differs}" in str(error.value)


def test_a_prefix_needs_a_free_slot(folder, tmp_path):
    llama = Llama.load(folder)
    llama.save_prefix(tmp_path / "p", "Once")
    stream = llama.stream("Twice", max_tokens=5, seed=1)  # an answer that goes on after its first token
    assert next(stream).finish_reason is None
    with pytest.raises(RequestError, match=r"^all 1 slots are in use"):
        llama.load_prefix(tmp_path / "p")
    stream.close()
    llama.load_prefix(tmp_path / "p")


def change(path, **tensors):
    """The file at `path` with other tensors, None: without."""
    with safetensors.safe_open(path, "np") as file:
        metadata, old = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    new = {name: value for name, value in (old | tensors).items() if value is not None}
    safetensors.numpy.save_file(new, path, metadata)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "no such file; save_prefix writes it"),
        (lambda path: path.write_bytes(b"x"), "cannot be read as a safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read as a safetensors file"),
        (lambda path: safetensors.numpy.save_file({"k": np.zeros(1)}, path), "not a saved prefix of version 1"),
        (lambda path: change(path, k=None), "k is missing"),
        (lambda path: change(path, tokens=np.array([[1]])), "tokens is int64 of shape (1, 1)"),
        (lambda path: change(path, tokens=np.array([1])), "k and v have the shapes"),
        (lambda path: change(path, tokens=np.full(5, TINY_VOCAB)), "outside the vocabulary"),
        (lambda path: change(path, k=np.zeros(1, np.float16)), "its keys and values are float16"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(folder, tmp_path, damage, says):
    llama, path = Llama.load(folder), tmp_path / "p"
    llama.save_prefix(path, "Once")
    damage(path)
    with pytest.raises(CheckpointError) as error:
        llama.load_prefix(path)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_saved_is_refused(folder, tmp_path):
    llama = Llama.load(folder)
    for call, says in (
        (lambda: llama.save_prefix(tmp_path / "no" / "p", "Once"), "cannot be written"),
        (lambda: llama.save_prefix(tmp_path / "p", []), "the prompt is empty"),
        (lambda: llama.save_prefix(tmp_path / "p", [1] * 2000), "the context window holds 1024"),
        (lambda: llama.save_prefix(tmp_path / "p", "Once", lora="x"), "there is no adapter 'x'"),
    ):
        with pytest.raises(RequestError, match=says):
            call()
    assert os.listdir(tmp_path) == []
