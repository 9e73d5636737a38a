"""`serve`'s options that are checked before anything starts: the token, hosts, origins and limits."""

import re
from pathlib import Path

import pytest

from llama3.cli.options import Parser
from llama3.cli.serve import parser, token_of
from llama3.errors import RequestError


def token(*argv: str) -> str | None:
    return token_of(parser().read(argv))


def test_white_space_around_a_token_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an editor or `echo` wrote ends in a line feed, which no header can bring."""
    file = tmp_path / "token"
    for text in ("secret", "secret\n", " \tsecret\r\n\n"):
        file.write_text(text)
        assert token("--token-file", str(file)) == "secret"
        assert token("--token", text) == "secret"
        monkeypatch.setenv("LLAMA3_TOKEN", text)
        assert token() == "secret"
        monkeypatch.delenv("LLAMA3_TOKEN")
    assert token() is None


def test_what_the_command_line_says_counts_and_two_tokens_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from-file")
    file = str(tmp_path / "token")
    with pytest.raises(RequestError, match="--token and --token-file are both set"):
        token("--token", "a", "--token-file", file)
    monkeypatch.setenv("LLAMA3_TOKEN", "from-variable")
    assert token("--token-file", file) == "from-file"
    monkeypatch.setenv("LLAMA3_TOKEN_FILE", file)
    with pytest.raises(RequestError, match="LLAMA3_TOKEN and LLAMA3_TOKEN_FILE are both set"):
        token()
    monkeypatch.delenv("LLAMA3_TOKEN")
    assert token("--token", "from-flag") == "from-flag" and token() == "from-file"


@pytest.mark.parametrize("wrong", ["", " ", "\n", "two words", "two\nlines", "tökén", "a\0b", "x" * 5000])
def test_a_token_that_no_header_can_carry_is_refused_by_its_source(wrong: str, tmp_path: Path) -> None:
    """Without the refusal, an empty token would mean a server that is open to all."""
    file = tmp_path / "token"
    file.write_text(wrong)
    for option, value in (("--token", wrong), ("--token-file", str(file))):
        with pytest.raises(RequestError, match=rf"^{option} is (empty|no token); expected") as caught:
            token(option, value)
        assert wrong.strip() == "" or wrong not in str(caught.value)  # the log must not show it


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RequestError, match=f"^--token-file: {re.escape(str(path))}: "):
            token("--token-file", str(path))


def test_the_help_says_who_sees_a_token() -> None:
    assert isinstance(parser(), Parser)
    text = " ".join(parser().format_help().split())
    assert "list of processes shows it to all users" in text and "--token-file" in text


@pytest.mark.parametrize(
    ("given", "host"), [("A.Example", "a.example"), ("a.example:80", "a.example"), ("::1", "::1"), ("[0::1]:8", "::1")]
)
def test_a_host_is_read_as_requests_name_it(given: str, host: str) -> None:
    assert parser().read(["--allow-host", given]).allow_host == [host]


@pytest.mark.parametrize("option", ["--allow-host", "--allow-origin"])
@pytest.mark.parametrize("wrong", ["*", "", "a b", "https://a.example/x", "a@b", "null,"])
def test_what_can_never_match_is_refused(option: str, wrong: str) -> None:
    with pytest.raises(RequestError, match=f"{option}: .* is no (host name|origin); expected one such as"):
        parser().read([option, wrong])
