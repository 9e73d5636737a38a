"""`llama3 download`: what it asks the hub for and what it prints. tests/checkpoint checks the download itself."""

from pathlib import Path
from typing import Any

import pytest

import llama3.checkpoint
from llama3.cli import main

RUN_IT = 'run it: llama3 --model {} "What is RoPE?"\n'


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each download; nothing is fetched."""
    calls: list[dict[str, Any]] = []

    def download(repo: str, to: str | None = None, revision: str | None = None) -> Path:
        calls.append({"repo": repo, "to": to, "revision": revision})
        return Path(to or "/cache/snapshot")

    monkeypatch.setattr(llama3.checkpoint, "download", download)
    return calls


@pytest.mark.parametrize(
    ("argv", "to", "revision", "out", "model"),
    [
        (["a/b"], None, None, "/cache/snapshot", "a/b"),
        (["a/b", "--to", "my models/b"], "my models/b", None, "my models/b", "'my models/b'"),
        (["a/b", "--revision", "v1"], None, "v1", "/cache/snapshot", "/cache/snapshot"),
    ],
)
def test_it_prints_the_folder_and_how_to_run_it(
    argv: list[str],
    to: str | None,
    revision: str | None,
    out: str,
    model: str,
    calls: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["download", *argv]) == 0
    assert calls == [{"repo": "a/b", "to": to, "revision": revision}]
    assert capsys.readouterr() == (out + "\n", RUN_IT.format(model))


def test_quiet(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "a/b", "--quiet"]) == 0
    assert capsys.readouterr() == ("/cache/snapshot\n", "")
