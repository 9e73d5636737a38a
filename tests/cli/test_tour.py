"""`llama3 tour`: stubs, grades, hunts and their exit codes; a reader's file cannot harm or hold up the command."""

import json
import time
from pathlib import Path

import pytest

from llama3.cli import main
from llama3.tour.exercises import check as checking
from llama3.tour.exercises.catalogue import EXERCISES
from llama3.tour.exercises.hunt import BUGS, SIGNS, Bug, clues, judge
from tests.pages import ROOT, blocks

NORM = "import numpy as np\ndef rms_norm(x, weight, eps):\n    {}\n"
RIGHT = "return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def check(source: str | bytes, capsys: Captured, *argv: str) -> tuple[int, str]:
    """Grade a file for page 3 -> the exit code and the output, its lines joined."""
    Path("rms_norm.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    code = main(["tour", "check", "3", *argv])
    out, err = capsys.readouterr()
    assert err == ""
    return code, " ".join(out.split())


def test_the_list_names_every_exercise(capsys: Captured):
    assert main(["tour"]) == 0
    out = capsys.readouterr().out
    assert all(f"{exercise.page}  {exercise.name}" in out for exercise in EXERCISES)


def test_start_writes_a_stub_once_and_check_says_that_it_is_not_written_yet(folder: Path, capsys: Captured):
    assert main(["tour", "start", "5"]) == 0
    stub = (folder / "rotate.py").read_text()
    assert "def rotate(" in stub and "llama3 tour check 5" in capsys.readouterr().out
    (folder / "rotate.py").write_text(stub + "# mine\n")
    assert main(["tour", "start", "rotate"]) == 2
    assert "exists already" in capsys.readouterr().err and (folder / "rotate.py").read_text().endswith("# mine\n")
    assert main(["tour", "check", "5"]) == 3
    assert "rotate.py, line 26: not written yet" in " ".join(capsys.readouterr().out.split())


def test_a_right_file_passes_and_may_have_any_name(capsys: Captured):
    Path("numpy.py").write_text(NORM.format(RIGHT))  # it does not take the place of NumPy
    assert main(["tour", "check", "rms_norm", "numpy.py", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["right"] and [line["mark"] for line in found["lines"]] == ["right", "right", ""]


def test_a_mistake_is_named_with_the_answer_that_it_gives(capsys: Captured):
    code, out = check(NORM.format(RIGHT.removesuffix(" * weight")), capsys)
    assert code == 3 and "weight is missing" in out
    assert "the logits of 17 of 17 positions differ" in out and "it should answer: RoPE, rotary position" in out


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (NORM.format("raise ValueError('no')"), "rms_norm.py, line 3: ValueError: no (called with x (5, 8)"),
        (NORM.format("return input()"), "line 3: EOFError"),
        (NORM.format("raise SystemExit(4)"), "line 3: SystemExit: 4"),
        (NORM.format("import os; os._exit(4)"), "it ended Python (exit code 4)"),
        (NORM.format("return x +"), "rms_norm.py, line 3: SyntaxError"),
        ("1 / 0", "rms_norm.py, line 1: ZeroDivisionError"),
        (b"\xff\xfe", "SyntaxError"),
    ],
)
def test_what_goes_wrong_in_a_file_is_one_line_with_its_own_line_number(source: str, says: str, capsys: Captured):
    code, out = check(source, capsys)
    assert code == 3 and says in out and "Traceback" not in out


def test_a_loop_without_an_end_is_ended_and_located(monkeypatch: pytest.MonkeyPatch, capsys: Captured):
    monkeypatch.setattr(checking, "SECONDS", 1.0)
    start = time.monotonic()
    code, out = check(NORM.format("while True:\n        try: x + x\n        except BaseException: pass"), capsys)
    assert code == 3 and "still running after 1 seconds" in out and "rms_norm.py, line " in out
    assert time.monotonic() - start < 60


BAD = [
    (["tour", "check", "4"], "page '4' of the tour has no exercise; these have one: 1 (merge), 3 (rms_norm)"),
    (["tour", "check", "3"], "rms_norm.py does not exist; write rms_norm.py with: llama3 tour start 3"),
    (["tour", "check", "3", "."], ". is a folder"),
    (["tour", "check", "3", "empty.py"], "empty.py has no function rms_norm"),
    (["tour", "check"], "is not an action"),
    (["tour", "start", "3", "4"], "is not an action"),
    (["tour", "5"], "is not an action"),
    (["tour", "hunt", "5"], "there is no hunt '5'; expected 1 to 4"),
    (["tour", "hunt", "1", "--answer", "what"], "'what' is not one of the bugs: embedding"),
    (["tour", "check", "3", "--answer", "mask"], "--answer belongs to a hunt"),
    (["tour", "hunt", "1", "--json"], "--json belongs to check"),
]


@pytest.mark.parametrize(("argv", "says"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(argv: list[str], says: str, capsys: Captured):
    Path("empty.py").write_text("rms_norm = 3\n")
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Captured):
    def refuse(*args: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied", "rotate.py")

    monkeypatch.setattr(Path, "open", refuse)  # root may write anywhere
    assert main(["tour", "start", "5"]) == 2
    assert "rotate.py cannot be written: Permission denied" in capsys.readouterr().err


def test_a_hunt_shows_two_answers_and_the_first_layer(capsys: Captured):
    assert main(["tour", "hunt", "2"]) == 0
    out = capsys.readouterr().out
    assert "RoPE, rotary position" in out and "  layers.0.up               same\n" in out and "--answer WORD" in out


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.word)
def test_a_bug_changes_what_its_word_says_first_and_no_other_word_is_right(bug: Bug):
    first = {"layout": "layers.0.q_rope", "swapped": "layers.0.feed_forward"}
    rows = clues(bug)
    changed = [name for name, said in rows if said != "same"]
    assert len(rows) == 13 and changed[0] == first.get(bug.word, "layers.0.heads.1.scores")
    assert [word for word in SIGNS if judge(bug, word)[0]] == [bug.word]


def test_an_answer_has_an_exit_code(capsys: Captured):
    assert main(["tour", "hunt", "3", "--answer", "mask"]) == 0
    assert main(["tour", "hunt", "3", "--answer", "scale"]) == 3
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["right", "no"]


def test_the_page_shows_what_the_check_of_its_example_prints(capsys: Captured):
    page = ROOT / "docs" / "tour" / "exercises.md"
    source, shown = next((a.text, b.text) for a, b in zip(blocks(page), blocks(page)[1:]) if a.language == "python")
    Path("rotate.py").write_text(source)
    assert main(["tour", "check", "5"]) == 3
    assert capsys.readouterr().out.split() == shown.split()
    table = page.read_text()
    assert all(f"| {e.page} | `{e.file}` | {e.about} |" in table for e in EXERCISES)
