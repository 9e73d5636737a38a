"""Every activation that transformers shows is the one of the same name here."""

from pathlib import Path

import numpy as np
import pytest

from llama3.activation_names import activation_names
from llama3.checkpoint import load_folder
from llama3.cli import main
from llama3.errors import RequestError
from llama3.llama import Llama
from llama3.parity import compare_files, compare_model, read_reference
from llama3.parity.own_reference import own_reference
from llama3.parity.write_reference import from_folder, load, reference_of
from tests.tiny import random_tensors, tiny_config, write_hf

CONFIG = tiny_config(n_layers=3)
TOKENS = np.random.RandomState(0).randint(0, CONFIG.vocab_size, 30).tolist()
NAMES = [name for name in activation_names(CONFIG)[:-1] if not name.endswith(".scores")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("models") / "tiny", CONFIG, random_tensors(CONFIG, 3, "bf16"))


def test_every_name_has_transformers_value(folder: Path) -> None:
    checkpoint = load_folder(folder)
    theirs = from_folder(checkpoint, TOKENS, "float32", NAMES)
    assert list(theirs.activations) == NAMES
    for dtype in ("float64", "float32"):
        report = compare_files(own_reference(checkpoint, TOKENS, dtype, NAMES), theirs)
        assert report.ok and list(report.activations) == NAMES, f"\n{report}"
    assert compare_model(Llama(checkpoint).model, theirs).ok


def test_what_transformers_does_not_show_is_one_line(folder: Path) -> None:
    model = load(folder, attention="sdpa")
    with pytest.raises(RequestError, match=r"layers.0.heads.0.scores cannot be recorded from transformers"):
        reference_of(model, TOKENS, "", activations=["layers.0.heads.0.scores"])
    with pytest.raises(RequestError, match=r"layers.0.heads.0.weights can only be recorded with attention='eager'"):
        reference_of(model, TOKENS, "", activations=["layers.0.heads.0.weights"])


def test_the_command_writes_one_from_transformers(folder: Path, tmp_path: Path, capfd) -> None:
    out = str(tmp_path / "r.safetensors")
    arguments = ["--from", "transformers", "--tokens", "5 1 7", "--activations", "layers.*.*,**.weights"]
    assert main(["reference", out, "--model", str(folder), "--dtype", "bfloat16", *arguments]) == 0
    reference = read_reference(out)
    assert reference.dtype == "bfloat16" and reference.producer.startswith("transformers") and reference.weights
    assert "layers.2.heads.3.weights" in reference.activations
    assert main(["compare", out, "--model", str(folder)]) == 0
    assert capfd.readouterr().out.endswith("equal within the limits\n")
