"""The command that writes a reference file writes what transformers computes, and our model agrees with it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llama3.checkpoint import load_folder
from llama3.model.transformer import Transformer
from llama3.parity import Reference, compare_model, read_reference, write_reference
from llama3.parity.write_reference import load, reference_of
from tests.tiny import random_tensors, tiny_config, write_hf

CONFIG = tiny_config()
TOKENS = [5, 0, 95, 17, 17, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("models") / "a model", CONFIG, random_tensors(CONFIG, 3, "bf16"))


def written(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, *arguments: str) -> Reference:
    monkeypatch.setattr(sys, "argv", ["write_reference", str(folder), str(out), *arguments])
    write_reference.main()
    return read_reference(out)


def test_our_model_agrees_with_what_it_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reference.safetensors"
    reference = written(monkeypatch, folder, out, "--activations", "--tokens", *map(str, TOKENS))
    assert capsys.readouterr().out.startswith(f"{out}: 6 tokens, logits at 6 positions, transformers ")
    assert reference.tokens.tolist() == TOKENS and reference.model == "a model" and reference.dtype == "float32"
    layers = [f"layers.{i}{part}" for i in range(2) for part in (".attention", ".feed_forward", "")]
    assert list(reference.activations) == ["tok_embeddings", *layers, "norm"] and reference.version == "1"
    checkpoint = load_folder(folder)
    report = compare_model(Transformer(checkpoint.config, checkpoint.weights), reference)
    assert report.ok and not report.config_differences, f"\n{report}"


def test_a_prompt_goes_through_the_models_own_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hf(tmp_path / "speaking", CONFIG, random_tensors(CONFIG))
    words = Tokenizer(models.WordLevel({"<unk>": 0, "once": 7, "upon": 8}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    reference = written(monkeypatch, folder, tmp_path / "out", "--prompt", "once upon once x", "--positions", "0", "3")
    assert reference.tokens.tolist() == [7, 8, 7, 0]
    assert reference.positions.tolist() == [0, 3] and not reference.activations


@pytest.mark.parametrize("dtype", write_reference.DTYPES)
def test_the_file_says_what_it_was_computed_in(
    dtype: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = written(monkeypatch, folder, tmp_path / "out", "--dtype", dtype, "--tokens", *map(str, TOKENS))
    assert reference.dtype == dtype
    with torch.inference_mode():
        expected = load(folder, dtype)(torch.tensor([TOKENS])).logits[0]
    assert expected.dtype == getattr(torch, dtype)
    assert np.array_equal(reference.logits, expected.float().numpy())
    checkpoint = load_folder(folder)
    report = compare_model(Transformer(checkpoint.config, checkpoint.weights), reference)
    assert report.ok, f"\n{report}"  # within the default limit of this dtype


def test_activations_are_those_that_transformers_itself_reports(folder: Path) -> None:
    model = load(folder)
    reference = reference_of(model, TOKENS, "", positions=[1, 4], activations=True)
    with torch.inference_mode():
        states = model(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states  # embedding, layers, norm
    assert len(states) == CONFIG.n_layers + 1  # the last layer's state is replaced by the norm's
    assert np.array_equal(reference.activations["tok_embeddings"], states[0][0].numpy())
    assert np.array_equal(reference.activations["layers.0"], states[1][0].numpy())
    assert np.array_equal(reference.activations["norm"], states[2][0, [1, 4]].numpy())
    blocks = [reference.activations[f"layers.1.{part}"] for part in ("attention", "feed_forward")]
    assert np.allclose(reference.activations["layers.0"] + sum(blocks), reference.activations["layers.1"], rtol=1e-5)


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    model = load(folder)
    reference_of(model, TOKENS, "", activations=True)
    assert not any(module._forward_hooks for module in model.modules())
