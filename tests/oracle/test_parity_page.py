"""The example of docs/parity.md, run with transformers: its commands, and what it shows of their output."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401 - safetensors reads bfloat16 through it
import pytest
from safetensors.numpy import load_file, save_file

from tests.pages import ROOT, blocks

BLOCKS = [block for block in blocks(ROOT / "docs" / "parity.md") if block.language == "sh"]
NUMBER = re.compile(r"\d\.\de[-+]\d\d")


def run(command: str, folder: Path, code: int = 0) -> str:
    program, *arguments = shlex.split(command)
    module = ["-m", "llama3.cli"] if program.endswith("llama3") else []
    ran = subprocess.run(
        [sys.executable, *module, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout


def write_faulty_demo(folder: Path) -> None:
    """The demo with the rows of wq and wk in Meta's order, in a file that claims Hugging Face's."""
    folder.mkdir()
    for file in (ROOT / "weights" / "demo").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, w in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            halves = w.reshape(-1, 2, 32, w.shape[1])  # (heads, 2, head_dim / 2, dim)
            tensors[name] = halves.swapaxes(1, 2).reshape(w.shape).copy()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    (folder / "weights").symlink_to(ROOT / "weights")
    write = BLOCKS[0].commands[0]
    run(write, folder)
    write_faulty_demo(folder / "mine")
    run(write.replace("weights/demo demo.safetensors", "mine mine.safetensors"), folder)
    return folder


def words(text: str) -> list[str]:
    """Without numbers, versions, positions of the worst rows, and the spaces between columns."""
    text = re.sub(r"(transformers|torch) [\w.+]+", r"\1", NUMBER.sub("#", text))
    return re.sub(r"(?<=#)\s+#\s+\d+", " # at", text).split()


def test_the_model_agrees_as_the_page_shows(folder: Path):
    shown, found = BLOCKS[0].output, run(BLOCKS[0].commands[1], folder)
    assert shown is not None and words(found) == words(shown)


def test_the_fault_is_found_as_the_page_shows(folder: Path):
    shown, found = BLOCKS[1].output, run(BLOCKS[1].commands[0], folder, code=3)
    assert shown is not None and words(found) == words(shown)
    errors = [[float(number) for number in NUMBER.findall(text)] for text in (found, shown)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)  # two digits are shown
