"""`llama3 inspect`: the summary, the views, the files that it writes, and what it refuses."""

import json
from pathlib import Path

import pytest

from llama3.cli import main

DEMO = str(Path(__file__).parents[2] / "weights" / "demo")
ASK = ("inspect", "What is RoPE?", "--model", DEMO, "--temperature", "0", "--max-tokens", "6")


def test_the_summary_says_what_was_seen(capsys: pytest.CaptureFixture[str]):
    assert main([*ASK]) == 0
    out = capsys.readouterr().out
    for text in ("' RoPE' 1504", "The answer: 6 tokens", "' RoPE'         .90", "layers.3.attention_residual"):
        assert text in out
    assert "\033" not in out  # no colours: this is no terminal


def test_only_the_views_that_were_asked_for_are_shown(capsys: pytest.CaptureFixture[str]):
    assert main([*ASK, "--lens", "--attention", "0.1", "--without", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "The logit lens" in out and "Head 0.1" in out and "without 0.1    'A large" in out
    assert "The prompt" not in out


def test_json_is_one_object_and_the_same_each_time(capsys: pytest.CaptureFixture[str]):
    found = []
    for _ in range(2):
        assert main(["inspect", "Hi", "--max-tokens", "4", "--json", "--attention", "0.1"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        del found[-1]["operations"]  # times
    assert found[0] == found[1] and found[0]["attention"].keys() == {"0.1"}


def test_a_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", "Hi", "--max-tokens", "4", "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    captured = capsys.readouterr()
    assert page.startswith("<!doctype html>") and captured.out == "" and "page.html" in captured.err


def test_a_lens_that_was_asked_for_is_shown_beside_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*ASK, "--lens", "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "The logit lens" in out and "The prompt" not in out and (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--without", "9.1"], "there is no layer 9; this model has layers 0 to 3"),
        (["--attention", "0.7"], "there is no head 0.7; this model has heads 0 to 3 in a layer"),
        (["--attention", "0.ffn"], "'0.ffn' is not a part of the model; expected LAYER.HEAD, such as 0.1"),
        (["--html", "no/such/folder/x.html"], "no/such/folder/x.html: its folder does not exist"),
        (["--raw", "--system", "x"], "--raw takes no system message"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(options: list[str], message: str, capsys):
    assert main([*ASK, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
