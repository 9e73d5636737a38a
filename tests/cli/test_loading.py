"""Loading for the command line: read-ahead with a progress bar, the name that is shown, refused models."""

import argparse
import io
import sys
from pathlib import Path

import pytest

from llama3.checkpoint import load_folder
from llama3.cli import loading
from llama3.errors import RequestError
from tests.cli.test_terminal import Terminal
from tests.tiny import random_tensors, tiny_config, write_hf


def arguments(folder: Path, quiet: bool = False) -> argparse.Namespace:
    return argparse.Namespace(model=str(folder), device="auto", quiet=quiet, linear=None, activations="float32")


@pytest.mark.parametrize("tied", [True, False])
def test_each_token_reads_all_parameters_but_an_embedding_of_its_own(tied: bool, tmp_path: Path) -> None:
    config = tiny_config(tied_embeddings=tied)
    checkpoint = load_folder(write_hf(tmp_path, config, random_tensors(config)))
    embedding = 0 if tied else config.vocab_size * config.dim
    size = sum(array.size for array in loading.read_by_each_token(checkpoint.weights))
    assert size == checkpoint.parameters - embedding


def test_large_weights_are_read_ahead_with_a_bar(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    loading.load(arguments(talker))
    assert screen.getvalue() == ""
    monkeypatch.setattr(loading, "LARGE", 1000)
    monkeypatch.setattr(loading, "CHUNK", 5000)
    loading.load(arguments(talker, quiet=True))
    assert screen.getvalue() == ""
    loading.load(arguments(talker))
    assert "reading the weights" in screen.getvalue()


def test_reading_ahead_reaches_the_end(monkeypatch: pytest.MonkeyPatch, talker: Path) -> None:
    monkeypatch.setattr(loading, "CHUNK", 5000)
    arrays = loading.read_by_each_token(load_folder(talker).weights)
    reports: list[int] = []
    monkeypatch.setattr(loading, "progress", lambda *_: Recorder(reports))
    loading.read_ahead(arrays, quiet=False)
    assert reports == sorted(set(reports)) and reports[-1] == sum(array.nbytes for array in arrays)


class Recorder:
    def __init__(self, reports: list[int]):
        self.reports = reports

    def __enter__(self) -> object:
        return self.reports.append

    def __exit__(self, *error: object) -> None:
        pass


def test_weights_larger_than_the_memory_are_said_to_be(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    monkeypatch.setattr(loading, "physical_memory", lambda: 1000.0)
    loading.load(arguments(talker))
    assert (
        file.getvalue()
        == "each token reads 268 kB of weights, but this machine has 1 kB of memory: they come from disk each time\n"
    )


def test_a_model_is_named_as_one_knows_it(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.which(loading.load(arguments(talker)), arguments(talker)) == "talker on cpu"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123456789"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(talker)
    args = argparse.Namespace(model="owner/name", device="auto", quiet=False, linear=None, activations="float32")
    monkeypatch.setattr("llama3.llama.resolve", lambda model: snapshot)
    assert loading.which(loading.load(args), args) == "owner/name on cpu"


def test_a_model_without_a_tokenizer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config, random_tensors(config))
    with pytest.raises(RequestError, match=r"has no tokenizer.*put tokenizer.model"):
        loading.load(arguments(folder))
