"""The shards and their index must agree, and the weights of a folder are found by their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from llama3.checkpoint.shards import find_weights, read_tensors
from llama3.errors import CheckpointError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write(folder: Path, weight_map: Any = None, **tensors_of: list[str]) -> Path:
    """Two shards, the first with tensors a and b, the second with c, and their index."""
    for name, tensors in ({"one": ["a", "b"], "two": ["c"]} | tensors_of).items():
        arrays = {tensor: np.full(2, ord(tensor), np.float32) for tensor in tensors}
        safetensors.numpy.save_file(arrays, folder / {"one": ONE, "two": TWO}[name])
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map or {"a": ONE, "b": ONE, "c": TWO}}))
    return folder / INDEX


def test_shards_join_to_all_the_tensors(tmp_path: Path):
    tensors, files = read_tensors(write(tmp_path))
    assert {name: array.tolist() for name, array in tensors.items()} == {n: [ord(n)] * 2 for n in "abc"}
    assert files == (tmp_path / ONE, tmp_path / TWO)


@pytest.mark.parametrize(
    ("change", "blamed", "says"),
    [
        (lambda f: (f / TWO).unlink(), TWO, "this shard is missing"),
        (lambda f: write(f, {"a": ONE, "b": ONE, "c": TWO, "d": TWO}), TWO, "tensor 'd' is missing"),
        (lambda f: write(f, {"a": ONE, "b": TWO, "c": TWO}), ONE, "tensor 'b' is not listed"),
        (lambda f: write(f, {"a": ONE, "c": TWO}), ONE, "tensor 'b' is not listed"),
        (lambda f: write(f, two=["b", "c"]), TWO, "tensor 'b' is not listed"),
        (lambda f: write(f, {"a": f"../{f.name}/{ONE}"}), INDEX, "weight_map names '../"),
        (lambda f: write(f, {"a": str(f / ONE)}), INDEX, "weight_map names '/"),
        (lambda f: write(f, {"a": f"..\\{ONE}"}), INDEX, "weight_map names '..\\"),
        (lambda f: write(f, {"a": ".."}), INDEX, "weight_map names '..'"),
        (lambda f: write(f, {"a": "pytorch_model.bin"}), INDEX, "weight_map names 'pytorch_model.bin'"),
        (lambda f: write(f, {"a": [ONE]}), INDEX, "weight_map names"),
        (lambda f: write(f, [ONE]), INDEX, "expected weight_map"),
        (lambda f: (f / INDEX).write_text("{}"), INDEX, "expected weight_map"),
        (lambda f: (f / INDEX).write_text("[]"), INDEX, "expected a JSON object"),
        (lambda f: (f / INDEX).write_text("{"), INDEX, "not valid JSON"),
        (lambda f: (f / INDEX).write_bytes(b'{"weight_map": "\xff"}'), INDEX, "not valid JSON"),
    ],
)
def test_an_index_and_its_shards_must_agree(tmp_path: Path, change: Callable[[Path], Any], blamed: str, says: str):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / INDEX)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / blamed}: ") and says.replace("\\", "\\\\") in message


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "consolidated.safetensors", INDEX], "model.safetensors"),
        ([INDEX, ONE, TWO, "consolidated.safetensors"], INDEX),
        (["consolidated.safetensors", "adapter.safetensors"], "consolidated.safetensors"),
        (["anything.safetensors", "config.json"], "anything.safetensors"),
    ],
)
def test_the_weights_are_found_by_name(tmp_path: Path, names: list[str], chosen: str):
    for name in names:
        (tmp_path / name).touch()
    assert find_weights(tmp_path) == tmp_path / chosen


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "no weights; expected model.safetensors"),
        (["a.safetensors", "b.safetensors"], f"a.safetensors, b.safetensors: several files, but no {INDEX}"),
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth: .pth files are not read"),
        (["pytorch_model.bin"], "pytorch_model.bin: .bin files are not read"),
        (["llama.gguf"], "llama.gguf: .gguf files are not read"),
    ],
)
def test_a_folder_without_readable_weights_says_what_to_do(tmp_path: Path, names: list[str], says: str):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as caught:
        find_weights(tmp_path)
    message = str(caught.value)
    assert says in message and str(tmp_path) in message
    assert ("Hugging Face form" in message and "llama3 download" in message) == ("not read" in says)
