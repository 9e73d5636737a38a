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


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "quantize takes one model, and found 0 words"),
        (["a", "b", "--to", "new"], "quantize takes one model, and found 2 words"),
        (["a"], "quantize needs the folder to write: --to FOLDER"),
        (["a", "--to", "new", "--bits", "3"], "--bits is 3; expected 8 or 4"),
        (["a", "--to", "new", "--bits", "four"], "'four' is not a whole number"),
        (["./nowhere", "--to", "new"], "nowhere: no such folder"),
    ],
)
def test_what_it_cannot_do_is_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", *argv]) != 0
    out, err = capsys.readouterr()
    assert says in err and "Traceback" not in err and out == ""
