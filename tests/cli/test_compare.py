"""`llama3 compare`: exit codes, output and limits. tests/parity checks the numbers."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from llama3.cli import main
from llama3.config import ModelConfig
from llama3.llama import Llama
from llama3.model import transformer
from llama3.model.rope import rope_table
from llama3.parity import Reference, save_reference
from llama3.parity.compact import compact_of, save_compact
from tests.quantised_files import BY_NAME, write


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


@pytest.fixture
def small(files: tuple[str, str], reference: Reference, tmp_path: Path) -> str:
    """The right file as a compact reference."""
    save_compact(tmp_path / "small", compact_of(reference))
    return str(tmp_path / "small")


def test_a_page_is_written_for_whole_and_for_compact_references(
    files: tuple[str, str], small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    for words, title in ((files, "Different"), ([small], "Equal within"), ([small, files[1]], "Different")):
        code = 0 if title.startswith("Equal") else 3
        assert main(["compare", *words, "--html", str(page)]) == code
        html = page.read_text(encoding="utf-8")
        assert f"<h1>{title}" in html and "<svg" in html and "http" not in html
        assert str(page) in capsys.readouterr().err


def test_a_compact_reference_takes_the_angles_of_transformers(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def table(config: ModelConfig, length: int, angles: str) -> tuple[np.ndarray, np.ndarray]:
        asked.append(angles)
        return rope_table(config, length, angles)

    monkeypatch.setattr(transformer, "rope_table", table)
    assert main(["compare", small, "--rope-angles", "float32"]) == 0
    assert asked == ["float32"]


def test_what_cannot_be_done_is_one_line_before_a_model_is_loaded(
    files: tuple[str, str], small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, folder = files[0], str(tmp_path)
    for arguments, message in (
        ([right, right, "--rope-angles", "float32"], "--rope-angles is for a model's own logits"),
        ([right, "--html", folder], "is a folder; expected the name of a file"),
        ([right, "--html", f"{folder}/no/page.html"], "its folder does not exist"),
        ([right, "--html", f"{right}/page.html"], "its folder is a file"),
        ([small, "--explain"], "--explain needs all logits"),
        ([right, small], "is a compact reference; it comes first"),
        ([small, small], "is a compact reference, too; expected a file with all logits"),
    ):
        assert main(["compare", *arguments, "--model", "no-such-folder"]) == 2
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and out == ""


def other(reference: Reference, name: str) -> bytes:
    """A file of another text or model, or the talker's file with something wrong in it, by name."""
    r, c = reference, reference.config
    if name in ("cut", "version", "layer"):
        content = written(replace(r, activations={"layers.1": np.zeros((20, c.dim), np.float32)}))
        changes = {"version": (b'"version": "1"', b'"version": "9"'), "layer": (b"layers.1", b"layers.7")}
        return content[:-9] if name == "cut" else content.replace(*changes[name])
    larger = np.zeros((20, c.vocab_size + 1), np.float32)
    return written(
        {
            "tokens": replace(r, tokens=r.tokens[::-1].copy()),
            "vocabulary": replace(r, logits=larger, config=replace(c, vocab_size=c.vocab_size + 1)),
            "positions": replace(r, logits=r.logits[:9], positions=r.positions[:9]),
        }[name]
    )


def written(reference: Reference) -> bytes:
    with TemporaryDirectory() as folder:
        save_reference(Path(folder, "r"), reference)
        return Path(folder, "r").read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tokens", "different tokens, 20 and 20 of them; the first difference is at 0: 19 in ours, 0 in the reference"),
        ("vocabulary", "in ours and {vocabulary} in the reference: these are different models"),
        ("positions", "ours has no logits at position 9, but the reference has"),
        ("cut", "/other: cannot be read as a safetensors file, it may be cut off or damaged"),
        ("version", "/other: version is '9'; this program reads the versions 1, 2"),
        ("layer", "/other: activations.layers.7 is unknown: there is no layer 7; the model has layers 0 to 1"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    name: str, says: str, files: tuple[str, str], reference: Reference, tmp_path: Path, capsys
) -> None:
    (tmp_path / "other").write_bytes(other(reference, name))
    assert main(["compare", files[0], str(tmp_path / "other")]) == 1
    out, err = capsys.readouterr()
    assert says.format(vocabulary=reference.config.vocab_size) in err and err.count("\n") == 1 and out == ""


def test_nan_is_a_difference_and_a_name_that_one_side_lacks_is_told(
    files: tuple[str, str], reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = reference.logits.copy()
    logits[4, 7] = np.nan
    norm = {"norm": np.ones((20, reference.config.dim), np.float32)}
    save_reference(tmp_path / "nan", replace(reference, logits=logits, activations=norm))
    assert main(["compare", files[0], str(tmp_path / "nan")]) == 3
    out = capsys.readouterr().out
    assert "DIFFERS: our logits hold NaN or infinity at 1 of 20 positions, first at 4" in out
    assert "the reference lacks norm that ours has" in out


@pytest.mark.parametrize("compact", [[], ["--compact"]])
def test_a_report_says_how_weights_are_quantised(
    compact: list[str], talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = write(tmp_path / "quantised", BY_NAME["int4 with zeros"])[0], str(tmp_path / "reference")
    said = "compressed-tensors pack-quantized, int4, a scale and a zero point for each 64 columns"
    assert main(["reference", file, "--model", str(folder), "--tokens", "1 2 3", *compact]) == 0
    assert main(["compare", file, "--model", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"quantised  {said}" in lines
    theirs = "weights compressed-tensors pack-quantized, int4, float64)"
    assert any(line.endswith(theirs) or f"{theirs}, compact" in line for line in lines)
    assert main(["compare", file, "--model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantised"] == said
    assert main(["reference", file, "--model", str(talker), "--tokens", "1 2 3", *compact]) == 0
    assert main(["compare", file, "--model", str(talker)]) == 0
    assert "quantised" not in capsys.readouterr().out
