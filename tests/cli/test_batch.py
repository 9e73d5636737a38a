"""`llama3 batch`: files and pipes, what it says, and that a run that was stopped or killed is continued."""

import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llama3.cli import main
from tests.batch_answers import without_ids
from tests.cli.running import PROGRAM, Screen, run

DEMO = str(Path(__file__).parents[2] / "weights" / "demo")


def requests(n: int, max_tokens: int = 5) -> list[dict[str, Any]]:
    """All forms in turn, each with a seed."""
    forms: list[Any] = [
        lambda more: {"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hi"}], **more}},
        lambda more: {"url": "/v1/completions", "body": {"prompt": ["The KV", "A"], **more}},
        lambda more: {"url": "/v1/responses", "body": {"input": "Hi", "seed": more["seed"], "max_output_tokens": 7}},
        lambda more: {"prompt": "What is RoPE?", **more},
        lambda more: {"url": "/v1/chat/completions", "body": {"temperature": 9, **more}},
    ]
    return [{"custom_id": str(k), **forms[k % 5]({"seed": k + 1, "max_tokens": max_tokens})} for k in range(n)]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_file_is_answered_and_a_second_run_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write(tmp_path / "requests.jsonl", requests(10)), tmp_path / "answers.jsonl"
    assert main(["batch", source, "--to", str(target)]) == 0
    out, err = capsys.readouterr()
    found = target.read_text()
    assert out == "" and [answer["custom_id"] for answer in without_ids(found)] == [str(k) for k in range(10)]
    assert re.fullmatch(r"10 answers, 2 of them errors; [\d,]+ tokens, [\d.,]+/s; [\d.]+ s; talker on cpu\n", err)
    assert main(["batch", source, "--to", str(target)]) == 0
    assert capsys.readouterr().err == f"{target} has all 10 answers\n" and target.read_text() == found
    target.write_text("".join(line + "\n" for line in found.splitlines()[:4]) + found.splitlines()[4][:50])
    assert main(["batch", source, "--to", str(target)]) == 0
    assert capsys.readouterr().err.startswith(f"{target} has 4 of 10 answers; going on\n6 answers, ")
    assert without_ids(target.read_text()) == without_ids(found)


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "requests.jsonl", requests(2))
    for _ in range(2):
        assert main(["batch", source, "--to", str(tmp_path / "answers.jsonl"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_pipes_give_the_same_answers(tmp_path: Path) -> None:
    source, target = write(tmp_path / "requests.jsonl", requests(5)), tmp_path / "answers.jsonl"
    assert run("batch", source, "--to", str(target)).returncode == 0
    with open(source, "rb") as file:
        piped = run("batch", "-", "--to", "-", stdin=file)
    assert piped.returncode == 0 and without_ids(piped.stdout) == without_ids(target.read_text())
    with open(source, "rb") as file:
        again = run("batch", "-", "--to", str(target), stdin=file)
    assert again.returncode == 2 and b"a pipe cannot be continued" in again.stderr
    assert main(["batch", "/dev/null", "--to", "-"]) == 0


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ([], 2, "batch takes the file of requests, and found 0 words"),
        (["a", "b", "--to", "c"], 2, "found 2 words"),
        (["requests.jsonl"], 2, "expected --to FILE, where the answers go; --to - is standard output"),
        (["none.jsonl", "--to", "a.jsonl"], 2, "none.jsonl: No such file or directory"),
        (["folder", "--to", "a.jsonl"], 2, "folder: Is a directory"),
        (["requests.jsonl", "--to", "folder"], 2, "folder: is a folder; expected the name of a file"),
        (["requests.jsonl", "--to", "no/a.jsonl"], 2, "no/a.jsonl: its folder does not exist"),
        (["requests.jsonl", "--to", "./requests.jsonl"], 2, "is the file of requests; expected another one"),
        (["requests.jsonl", "--to", "notes.txt"], 2, "notes.txt: line 1 is no answer of a batch; nothing was changed"),
        (["requests.jsonl", "--to", "a.jsonl", "--slots", "0"], 2, "--slots: 0 is too small"),
        (["requests.jsonl", "--to", "a.jsonl", "--replicas", "2"], 2, "--replicas is the number of copies on a Ray"),
        (["--ray", "requests.jsonl", "--to", "a.jsonl"], 2, "--ray: 'requests.jsonl' is no address of a Ray cluster"),
        (["requests.jsonl", "--to", "a.jsonl", "--ray", "ray://head:1"], 2, "expected HOST:PORT of its head"),
        (
            ["requests.jsonl", "--to", "/dev/full", "--slots", "1"],
            1,
            "No space left on device; /dev/full has 0 answers",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    argv: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "requests.jsonl", requests(3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    assert main(["batch", *argv, "--quiet"]) == code
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.startswith("llama3: ") and err.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "notes"


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    source, target = write(tmp_path / "requests.jsonl", requests(500, 200)), tmp_path / "answers.jsonl"
    with Screen(["batch", source, "--to", str(target), "--slots", "1"]) as screen:
        screen.wait_for("500 requests")
        while not target.exists() or target.read_bytes().count(b"\n") < 3:
            screen.wait_for_more(0.1)
        assert "tokens" in screen.shown and "/s" in screen.shown
        screen.interrupt_until("stopped; ")
        screen.wait_for_end()
    n = target.read_bytes().count(b"\n")
    said = re.search(r"has (\d+) answers: run the same command again to go on", re.sub(r"\s+", " ", screen.shown))
    assert said and n - 1 <= int(said[1]) <= n  # one less if Ctrl-C came after a line was written, and before the count
    assert screen.code == 130 and 3 <= n < 500 and target.read_bytes().endswith(b"\n")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_answer(tmp_path: Path) -> None:
    n = 150
    source, target, whole = write(tmp_path / "r.jsonl", requests(n, 12)), tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    dice = random.Random(0)
    for kill in range(20):
        process = subprocess.Popen([*PROGRAM, "batch", source, "--to", str(target), "--model", DEMO, "--quiet"])
        before = target.stat().st_size if target.exists() else 0
        while kill % 4 and process.poll() is None and (not target.exists() or target.stat().st_size <= before):
            time.sleep(0.005)  # three times out of four, it has written something
        time.sleep(dice.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    for file in (target, whole):
        assert run("batch", source, "--to", str(file), "--model", DEMO).returncode == 0
    assert without_ids(target.read_text()) == without_ids(whole.read_text())
    assert len(target.read_text().splitlines()) == n
