"""A model's name resolves to the demo, to a folder or to a repository on the hub; any other name is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from llama3.checkpoint import resolve
from llama3.errors import CheckpointError
from llama3.resources import resource


def test_no_name_is_the_demo():
    assert resolve(None) == resource("weights", "demo")


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")  # a folder takes precedence over the hub


@pytest.mark.parametrize("model", ["nowhere", "./owner/name", "/no/such", "a/b/c", "owner/", "/name", "x y/z", "ä/b"])
def test_what_is_neither_a_folder_nor_a_name_on_the_hub_is_refused(model: str):
    with pytest.raises(CheckpointError) as caught:
        resolve(model)
    assert "expected a folder, or a name on the hub" in str(caught.value)


def test_a_path_object_is_never_looked_up_on_the_hub():
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(Path("owner/name"))


def test_a_file_is_refused_with_what_to_do(tmp_path: Path):
    for name, says in [("consolidated.00.pth", "llama3 download"), ("model.safetensors", "the folder that holds it")]:
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=says):
            resolve(tmp_path / name)


def test_neither_the_hub_nor_tiktoken_nor_torch_is_imported_before_it_is_needed():
    script = "import sys, llama3.checkpoint; print(sorted({'huggingface_hub', 'tiktoken', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
