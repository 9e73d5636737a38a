"""Output for terminals: columns that fit, rounded figures, colours, progress bars, control characters."""

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3.cli.terminal import columns, in_bytes, paint, per_second, prepare_hub, progress, show

words = st.lists(st.text("abc-", min_size=1, max_size=15), max_size=12).map(" ".join)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.lists(st.tuples(st.text("xyz", min_size=1, max_size=20), words), min_size=1), st.integers(40, 200))
def test_columns_fit_and_lose_no_word(rows: list[tuple[str, str]], width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        text = columns(rows)
    assert max(map(len, text.splitlines())) <= width
    assert sorted(text.split()) == sorted(word for first, second in rows for word in (first, *second.split()))


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (371_000, "371 kB"),
        (999_999, "1 MB"),
        (16_060_522_496, "16.1 GB"),
    ],
)
def test_bytes_in_words(n: int, text: str) -> None:
    assert in_bytes(n) == text


@pytest.mark.parametrize(("n", "seconds", "text"), [(1, 8, "0.12/s"), (25, 2, "12.5/s"), (9000, 2, "4,500/s")])
def test_rates(n: int, seconds: float, text: str) -> None:
    assert per_second(n, seconds) == text
    assert per_second(0, 0) == "0/s"


def test_an_answer_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\x1b]0;title\x07\x9b2J\r\tb\n"
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    show(text)
    assert screen.getvalue() == "a\\x1b]0;title\\x07\\x9b2J\\x0d\tb\n"
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    show(text)
    assert file.getvalue() == text


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert paint("x", "2", Terminal()) == "\x1b[2mx\x1b[0m"
    assert paint("x", "2", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", "2", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "2", Terminal()) == "x"


def test_the_hubs_bars_are_for_terminals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, quiet, disabled in ((Terminal(), False, None), (Terminal(), True, "1"), (io.StringIO(), False, "1")):
        monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        prepare_hub(quiet)
        assert os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == disabled


def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, quiet, shown in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("working", 10, "B", quiet) as report:
            report(4)
            report(10)
        assert ("working" in stream.getvalue()) == shown


def test_a_slow_rate_stays_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, tqdm shows less than one token per second as seconds per token."""
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("working", 10, " tokens", False) as report:
        report(4)
    assert " tokens/s" in sys.stderr.getvalue() and "s/ tokens" not in sys.stderr.getvalue()
