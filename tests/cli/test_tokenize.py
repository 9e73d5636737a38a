"""`llama3 tokenize`: ids and pieces, their JSON, the way back to text, and the escapes."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3.chat import encode_dialog
from llama3.cli import main
from llama3.cli.tokenize import readable
from llama3.tokenizer import Tokenizer
from tests.cli.running import Screen, give_stdin

TEXT = 'What is\tRoPE? "é\\n" <|eot_id|>'


@pytest.fixture(scope="module")
def tokenizer(talker: Path) -> Tokenizer:
    return Tokenizer.from_file(talker / "tokenizer.model")


def table(out: str) -> list[tuple[int, str]]:
    """(id, piece) of each line."""
    return [(int(line.split(maxsplit=1)[0]), line[9:]) for line in out.splitlines()]


def test_a_line_is_an_id_and_its_piece(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", TEXT]) == 0
    out, err = capsys.readouterr()
    ids = tokenizer.encode(TEXT)
    assert [i for i, _ in table(out)] == ids and err == f"{len(ids)} tokens\n"
    assert table(out)[:3] == [(ids[0], '"What"'), (ids[1], '" is"'), (ids[2], '"\\t"')]


def test_standard_input_counts_to_the_last_newline(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["tokenize"], ["tokenize", "-"]):
        give_stdin(monkeypatch, "He llo\n")
        assert main([*argv, "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert [i for i, _ in table(out)] == tokenizer.encode("He llo\n") and err == ""


def test_special_tokens_only_if_asked_for(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--special", TEXT]) == 0
    assert table(capsys.readouterr().out)[-1] == (tokenizer.special_id("<|eot_id|>"), "<|eot_id|>")


def test_chat_shows_what_the_model_gets(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--chat", "--json", TEXT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == encode_dialog(tokenizer, [{"role": "user", "content": TEXT}])
    assert found["tokens"][0]["text"] == "<|begin_of_text|>"


def test_json_holds_every_byte(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--json", TEXT]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["count"] == len(found["ids"]) == len(found["tokens"]) and err == ""
    assert bytes.fromhex("".join(token["bytes"] for token in found["tokens"])).decode() == TEXT


def test_decode_is_the_way_back(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tokenizer.encode(TEXT)
    for argv in ([*map(str, ids)], [json.dumps(ids)], [",".join(map(str, ids))]):
        assert main(["tokenize", "--decode", *argv]) == 0
        assert capsys.readouterr().out == TEXT + "\n"
    give_stdin(monkeypatch, "\n".join(map(str, ids)))
    assert main(["tokenize", "--decode"]) == 0
    assert capsys.readouterr().out == TEXT + "\n"


def unescape(text: str) -> bytes:
    """The inverse of `readable`."""
    names = {"n": b"\n", "t": b"\t", "r": b"\r", "\\": b"\\", '"': b'"'}

    def piece(match: re.Match[str]) -> str:
        code = match[1]
        if code in names:
            return names[code].decode()
        if code[0] == "x" and int(code[1:], 16) >= 0x80:
            return chr(0xDC00 + int(code[1:], 16))  # a byte of an incomplete character, as `surrogateescape` writes it
        return chr(int(code[1:], 16))

    pattern = r"\\([ntr\\\"]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
    return re.sub(pattern, piece, text).encode("utf-8", "surrogateescape")


@given(st.binary(max_size=12) | st.text(st.characters(codec="utf-8"), max_size=6).map(str.encode))
def test_a_readable_piece_is_printable_and_loses_nothing(piece: bytes) -> None:
    assert readable(piece).isprintable()
    assert unescape(readable(piece)) == piece


def test_a_terminal_gets_the_text_in_two_colours() -> None:
    with Screen(["tokenize", "What is"]) as screen:
        shown = screen.wait_for_end()
    assert "\x1b[30;46mWhat\x1b[0m\x1b[30;43m is\x1b[0m\r\n" in shown
    with Screen(["tokenize", "What is"], env={"NO_COLOR": "1"}) as screen:
        shown = screen.wait_for_end()
    assert "\x1b" not in shown and shown.split()[1] == '"What"'
