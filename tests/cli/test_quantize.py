"""`llama3 quantize`: what it prints, and that the folder is written. tests/quantize checks what is in it."""

from pathlib import Path

import pytest

from llama3.cli import main
from llama3.resources import resource


def test_it_prints_the_folder_and_how_to_run_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "in 4 bits"
    assert main(["quantize", str(resource("weights", "demo")), "--to", str(to), "--bits", "4"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{to}\n"
    assert err == f"7.35 MB before, 3.46 MB now\nrun it: llama3 --model '{to}' \"What is RoPE?\"\n"
    assert (to / "tokenizer.model").is_file()


def test_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "new"
    assert main(["quantize", str(resource("weights", "demo")), "--to", str(to), "--quiet"]) == 0
    assert capsys.readouterr() == (f"{to}\n", "")
