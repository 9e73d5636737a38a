"""`llama3 chat`: dialogues from a pipe, its /commands and parameters, and Ctrl-C and line editing at a terminal."""

import os
import re
from pathlib import Path

import pytest

from llama3.cli import main
from llama3.llama import Llama
from tests.cli.running import Screen, give_stdin

GREEDY = ["--temperature", "0", "--max-tokens", "12"]
PROMPT = ">>> "


@pytest.fixture(scope="module")
def llama(talker: object) -> Llama:
    return Llama.load(str(talker))


def answers(llama: Llama, *questions: str, system: str | None = None) -> list[str]:
    """Greedy answers to questions that are asked one after the other."""
    messages = [{"role": "system", "content": system}] if system else []
    for question in questions:
        messages.append({"role": "user", "content": question})
        text = llama.chat(messages, temperature=0, max_tokens=12).text
        messages.append({"role": "assistant", "content": text})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def pipe(monkeypatch: pytest.MonkeyPatch, lines: str, *argv: str) -> int:
    give_stdin(monkeypatch, lines)
    return main(["chat", *GREEDY, *argv])


def test_a_line_is_a_message_and_the_dialogue_grows(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, "What\n\nis RoPE\n") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == answers(llama, "What", "is RoPE") and err == ""


@pytest.mark.parametrize("command", ["/bye", "/exit", "/quit"])
def test_bye_ends_it(
    command: str, llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, f"What\n{command}\nmore\n") == 0
    assert capsys.readouterr().out.splitlines() == answers(llama, "What")


def test_three_quotes_hold_several_lines_and_slashes(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, '"""one\n\n two"""\n"""\n/help\n"""\n"""open\nto the end') == 0
    assert capsys.readouterr().out.splitlines() == answers(llama, "one\n\n two", "/help", "open\nto the end")


def test_system_text_can_be_set_shown_and_removed(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = '/system\n/system Be brief.\nhi\n/clear\n/system """two\nlines"""\nhi\n/clear\n/system off\nhi\n'
    assert pipe(monkeypatch, lines) == 0
    out, err = capsys.readouterr()
    expected = [answers(llama, "hi", system=system)[0] for system in ("Be brief.", "two\nlines", None)]
    assert out.splitlines() == expected
    assert "no system message\nsystem message: Be brief.\n" in err
    assert pipe(monkeypatch, "hi\n", "--system", "Be brief.") == 0
    assert capsys.readouterr().out.splitlines() == expected[:1]


def test_clear_forgets_the_dialogue(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, "What\n/clear\nWhat\n") == 0
    assert capsys.readouterr().out.splitlines() == answers(llama, "What") * 2


def test_set_changes_any_parameter(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["temperature 2", "seed 4", "max-tokens 7", "top_k 50", "top_p 0.9"]
    lines = [*(f"/set {setting}" for setting in settings), "hi", "/set", "/set top_k off"]
    assert pipe(monkeypatch, "\n".join(lines)) == 0
    out, err = capsys.readouterr()
    expected = llama.chat([{"role": "user", "content": "hi"}], temperature=2, seed=4, max_tokens=7, top_k=50, top_p=0.9)
    assert out == expected.text + "\n"
    shown = dict(line.split(maxsplit=1) for line in err.splitlines()[5:-1])
    assert shown["temperature"] == "2.0" and shown["seed"] == "4" and shown["max_tokens"] == "7"
    assert shown["top_k"] == "50" and shown["min_p"] == shown["stop"] == "off"
    assert err.splitlines()[-1].split() == ["top_k", "off"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set temperature hot", "temperature: 'hot' is not a number"),
        ("/set top_p 2", "top_p is 2.0"),
        ("/set max_tokens 0", "max_tokens: 0 is too small"),
        ("/set warmth 1", "there is no parameter warmth; there are max_tokens, stop, temperature"),
        ("/help me\n/hlep", "there is no /hlep; /help lists"),
        ("/set max_tokens 9999\nhi", "the context window holds 2048"),
        ("x" * 2100, "/clear forgets the dialogue"),
    ],
)
def test_what_is_wrong_is_explained_and_the_dialogue_goes_on(
    line: str, says: str, llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, f"What\n{line}\n/set max_tokens 12\nis RoPE\n") == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == answers(llama, "What", "is RoPE")
    complaints = [line for line in err.splitlines() if line.startswith("llama3: ")]
    assert len(complaints) == 1 and says in complaints[0]


def test_a_length_that_nobody_set_is_what_the_window_leaves_and_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, "x" * 1900 + "\n/clear\n" + "x" * 2100)
    assert main(["chat", "--temperature", "0"]) == 2
    out, err = capsys.readouterr()
    assert len(out) > 1
    assert "the context window holds 2048, the answer included; shorten the prompt (/clear forgets the dialogue)" in err


def test_an_interrupted_dialogue_in_a_pipe_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Llama, "stream", interrupt)
    assert pipe(monkeypatch, "one\ntwo\n") == 130
    assert capsys.readouterr() == ("", "")


# The tests below run at a pseudo-terminal.


def test_ctrl_c_stops_the_answer_only_and_ctrl_d_quits() -> None:
    with Screen(["chat", "--max-tokens", "1800", "--seed", "1"]) as screen:
        screen.wait_for(PROMPT)
        screen.type("hi\r")
        screen.wait_for("hi\r\n")
        while len(screen.shown) < 40:
            screen.wait_for_more()
        screen.type("\x03")
        stopped = re.search(r"\((\d+) tokens, .*; stopped\)", screen.wait_for(PROMPT))
        assert stopped and 0 < int(stopped[1]) < 1800
        screen.type("/set max_tokens 5\r")
        screen.wait_for(PROMPT)
        screen.type("again\r")
        assert "(5 tokens, " in screen.wait_for(PROMPT)
        screen.type("\x04")
        assert screen.wait_for_end().endswith("\r\n")
    assert screen.code == 0


def test_ctrl_c_at_the_prompt_hints_and_drops_the_line() -> None:
    with Screen(["chat", *GREEDY]) as screen:
        screen.wait_for(PROMPT)
        screen.type("half a line")
        screen.wait_for("half a line")
        screen.interrupt_until("(Ctrl-D or /bye quits)")
        screen.wait_for(PROMPT)
        screen.type('"""two\r')
        screen.wait_for("... ")
        screen.interrupt_until("(Ctrl-D or /bye quits)")
        screen.wait_for(PROMPT)
        screen.type("/set top_k\r")
        assert "off" in screen.wait_for(PROMPT)
        screen.type("/bye\r")
        screen.wait_for_end()
    assert screen.code == 0


def test_what_was_said_before_ctrl_c_stays_in_the_dialogue(llama: Llama) -> None:
    """The next prompt has as many tokens as the question and the interrupted answer together."""
    with Screen(["chat", "--max-tokens", "1500", "--temperature", "0", "--quiet"]) as screen:
        screen.wait_for(PROMPT)
        screen.type("hi\r")
        screen.wait_for("hi\r\n")
        while len(screen.shown) < 40:
            screen.wait_for_more()
        screen.type("\x03")
        said = screen.wait_for(PROMPT).removesuffix(PROMPT).replace("^C", "").strip()
        screen.type("/set max_tokens 2000\r")
        screen.wait_for(PROMPT)
        screen.type("more\r")
        complaint = re.search(r"(\d+) prompt tokens", screen.wait_for(PROMPT))
        screen.type("\x04")
        screen.wait_for_end()
    dialogue = [("user", "hi"), ("assistant", said), ("user", "more")]
    expected = llama.encode_chat([{"role": role, "content": text} for role, text in dialogue])
    assert complaint and int(complaint[1]) == len(expected)


def test_the_history_of_lines_outlives_the_program(tmp_path: Path) -> None:
    for line in ("/set seed 1", "/set seed 2"):
        with Screen(["chat"]) as screen:
            screen.wait_for(PROMPT)
            screen.type(line + "\r")
            screen.wait_for(PROMPT)
            screen.type("\x04")
            screen.wait_for_end()
    file = tmp_path / "state" / "llama3" / "history"
    assert file.read_text().splitlines() == ["/set seed 1", "/set seed 2"]
    assert file.stat().st_mode & 0o077 == 0
    with Screen(["chat"]) as screen:
        screen.wait_for(PROMPT)
        screen.type("\x1b[A\x1b[A\r")  # up, up
        assert "  seed  1\x1b" in screen.wait_for(PROMPT)


def test_an_unwritable_history_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Screen(["chat"], env={"XDG_STATE_HOME": str(tmp_path / "file")}) as screen:
        screen.wait_for(PROMPT)
        screen.type("\x04")
        assert "Traceback" not in screen.wait_for_end()
    assert screen.code == 0


def test_answers_can_go_to_a_file_while_one_types(tmp_path: Path, llama: Llama) -> None:
    out = os.open(tmp_path / "answers", os.O_WRONLY | os.O_CREAT)
    with Screen(["chat", *GREEDY], stdout=out) as screen:
        screen.wait_for(PROMPT)
        screen.type("hi\r")
        screen.wait_for(PROMPT)
        screen.type("\x04")
        screen.wait_for_end()
    os.close(out)
    assert (tmp_path / "answers").read_text() == answers(llama, "hi")[0] + "\n"
