"""`llama3 compare`: exit codes, output and limits. tests/parity checks the numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama3.cli import main
from llama3.llama import Llama
from llama3.parity import Reference, save_reference


@pytest.fixture(scope="module")
def reference(talker: Path) -> Reference:
    llama, ids = Llama.load(talker), list(range(20))
    return Reference(
        tokens=np.array(ids, np.int64),
        logits=llama.logits(ids),
        positions=np.arange(20),
        config=llama.config,
        dtype="float32",
        producer="this test",
        model="talker",
    )


@pytest.fixture
def files(reference: Reference, tmp_path: Path) -> tuple[str, str]:
    """Two reference files: the talker's own logits, and logits that differ by 1 %."""
    other = replace(reference, logits=reference.logits * np.float32(1.01))
    save_reference(tmp_path / "right", reference)
    save_reference(tmp_path / "wrong", other)
    return str(tmp_path / "right"), str(tmp_path / "wrong")


def test_a_model_that_agrees_is_0_and_one_that_differs_3(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = files
    assert main(["compare", right]) == 0
    assert "relative error" in capsys.readouterr().out
    assert main(["compare", wrong]) == 3
    out, err = capsys.readouterr()
    assert "relative error" in out and err == ""
    assert main(["compare", wrong, "--rtol", "0.1"]) == 0
    assert main(["compare", wrong, "--rtol", "0.1", "--max-kl", "1e-12"]) == 3
    assert main(["compare", wrong, "--rtol", "0.1", "--min-top1", "1"]) == 0


def test_two_files(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = files
    assert main(["compare", right, right]) == 0
    assert main(["compare", right, wrong]) == 3


def test_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for file, code in zip(files, (0, 3)):
        assert main(["compare", file, "--json"]) == code
        out, err = capsys.readouterr()
        assert json.loads(out)["ok"] is (code == 0) and err == ""
