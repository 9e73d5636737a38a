"""`llama3 "prompt"`: the answer and the figures equal those of the Python API; prompts, tools, schemas, adapters."""

import json
import re
from pathlib import Path

import pytest

from llama3.cli import main
from llama3.llama import Llama
from tests.cli.running import Screen, give_stdin, run
from tests.tiny import random_adapter, write_adapter


@pytest.fixture(scope="module")
def llama(talker: object) -> Llama:
    return Llama.load(str(talker))


def ask(text: str, **parameters: object) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_standard_output_is_the_answer_alone(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["What is RoPE?", "--seed", "5", "--max-tokens", "20"]) == 0
    out, err = capsys.readouterr()
    expected = llama.chat(ask("What is RoPE?"), seed=5, max_tokens=20)
    assert out == expected.text + "\n"
    lines = err.splitlines()
    assert len(lines) == 2 and all(len(line) < 80 for line in lines)
    prompt = expected.usage.prompt_tokens
    assert re.match(
        rf"prompt {prompt} tokens, [\d,.]+/s; answer 20 tokens, [\d,.]+/s; first token after \d+\.\d\d s$", lines[0]
    )
    assert lines[1] == "finished: length (--max-tokens); seed 5; talker on cpu"


def test_quiet_says_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--quiet", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().err == ""


def test_a_seed_that_was_drawn_repeats_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--max-tokens", "20", "--temperature", "2"]) == 0
    out, err = capsys.readouterr()
    seed = re.search(r"seed (\d+)", err)
    assert seed and main(["hi", "--max-tokens", "20", "--temperature", "2", "--seed", seed[1]]) == 0
    assert capsys.readouterr().out == out


def test_system_text_comes_before_the_prompt(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "9"]) == 0
    expected = llama.chat([{"role": "system", "content": "Be brief."}, *ask("hi")], temperature=0, max_tokens=9)
    assert capsys.readouterr().out == expected.text + "\n"


def test_raw_continues_the_text(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "He<|eot_id|>llo"
    assert main(["--raw", prompt, "--temperature", "0", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == llama.generate(prompt, temperature=0, max_tokens=9).text + "\n"


@pytest.mark.parametrize(
    ("words", "stdin", "prompt"),
    [
        (["Sum it up:"], "one\ntwo\n", "Sum it up:\n\none\ntwo"),
        ([], "one\n\n", "one\n"),
        (["-"], "one", "one"),
        (["one"], "", "one"),
        ([], "\ufeffé", "é"),
    ],
)
def test_standard_input_follows_the_prompt(
    words: list[str],
    stdin: str,
    prompt: str,
    llama: Llama,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give_stdin(monkeypatch, stdin)
    assert main(["--raw", "--temperature", "0", "--max-tokens", "9", *words]) == 0
    assert capsys.readouterr().out == llama.generate(prompt, temperature=0, max_tokens=9).text + "\n"


def test_every_parameter_arrives(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {
        "temperature": 1.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "seed": 11,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "max_tokens": 30,
    }
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in parameters.items()]
    assert main(["hi", *argv]) == 0
    assert capsys.readouterr().out == llama.chat(ask("hi"), **parameters).text + "\n"


def test_a_stop_string_ends_the_answer_and_is_not_shown(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    whole = llama.chat(ask("hi"), temperature=0, max_tokens=30).text
    stop = whole[10:12]
    assert main(["hi", "--temperature", "0", "--max-tokens", "30", "--stop", "\0", "--stop", stop]) == 0
    out, err = capsys.readouterr()
    assert out == whole[: whole.index(stop)] + "\n" and "finished: stop;" in err


def test_json_is_one_object_with_what_the_api_says(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--json", "--logprobs", "2", "--seed", "3", "--max-tokens", "8"]) == 0
    out, _ = capsys.readouterr()
    expected = llama.chat(ask("hi"), seed=3, max_tokens=8, logprobs=2)
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found["text"] == expected.text and found["tokens"] == expected.tokens and found["seed"] == 3
    assert found["finish_reason"] == "length" and found["usage"]["total_tokens"] == expected.usage.total_tokens
    for token, piece in zip(found["logprobs"], expected.pieces, strict=True):
        assert token["token"] == piece.token and token["logprob"] == pytest.approx(piece.logprob, abs=1e-4)
        assert [top["token"] for top in token["top"]] == [token for token, _ in piece.top_logprobs]
        assert [top["logprob"] for top in token["top"]] == pytest.approx([p for _, p in piece.top_logprobs], abs=1e-4)
    assert "".join(token["text"] for token in found["logprobs"]) == expected.text


def test_logprobs_leave_out_the_stop_token(llama: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    first = llama.chat(ask("hi"), temperature=0, max_tokens=1)
    assert main(["hi", "--json", "--logprobs", "0", "--temperature", "0", "--stop", first.text]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "" and found["finish_reason"] == "stop"
    assert [token["token"] for token in found["logprobs"]] == found["tokens"]


def test_a_length_that_nobody_set_is_what_the_window_leaves(
    llama: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a" * 1900
    left = llama.config.max_seq_len - len(llama.encode(prompt))
    assert main(["--raw", prompt, "--temperature", "0"]) == 0
    assert f"; answer {left} tokens" in (err := capsys.readouterr().err)
    assert "finished: length (the context window is full); seed" in err
    assert main(["--raw", prompt, "--max-tokens", "256"]) == 2
    assert "shorten the prompt or lower max_tokens" in capsys.readouterr().err
    assert main(["--raw", "a" * 2100]) == 2
    assert "the prompt has 2101 tokens, and the context window holds 2048" in (err := capsys.readouterr().err)
    assert "max_tokens" not in err and err.count("\n") == 1


def test_as_a_program_too(llama: Llama) -> None:
    done = run("--temperature", "0", "--max-tokens", "9", input=b"hi\n", stdin=None)
    assert done.returncode == 0
    assert done.stdout.decode() == llama.chat(ask("hi"), temperature=0, max_tokens=9).text + "\n"


def test_no_prompt_at_a_terminal_teaches() -> None:
    with Screen([]) as screen:
        shown = screen.wait_for_end()
    assert screen.code == 2 and 'llama3 "What is RoPE?"' in shown and "llama3 --help" in shown


def test_a_terminal_shows_a_bar_for_a_long_prompt_and_the_figures_apart() -> None:
    with Screen(["word " * 120, "--max-tokens", "3"]) as screen:
        shown = screen.wait_for_end()
    assert screen.code == 0
    assert re.search(r"reading the prompt +\d+%\|.*\d+/\d+ tokens, (\d\d:\d\d|\?) left, [\d.?]+ tokens/s", shown)
    assert "\x1b[2mprompt " in shown


def test_no_color_and_short_prompts_leave_the_screen_plain() -> None:
    with Screen(["hi", "--max-tokens", "3"], env={"NO_COLOR": "1"}) as screen:
        shown = screen.wait_for_end()
    assert screen.code == 0 and "\x1b" not in shown and "reading" not in shown


TOOLS = [{"name": "look", "parameters": {"properties": {"at": {"enum": ["sky", "sea"]}}, "required": ["at"]}}]


def test_json_by_a_schema_and_tools_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text('{"enum": [["a", 1], true]}')
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    assert main(["hi", "--json-schema", str(tmp_path / "schema.json"), "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) in (["a", 1], True)
    assert main(["hi", "--tools", str(tmp_path / "tools.json"), "--json", "--quiet", "--max-tokens", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tool_calls"] == [] and not found["text"].startswith("{")


@pytest.mark.parametrize(
    ("option", "content", "says"),
    [
        ("--tools", None, "No such file"),
        ("--tools", "{", "is not JSON"),
        ("--tools", "{}", "--tools: tools is dict; expected a list"),
        ("--tools", "[7]", "tools[0] is int"),
        ("--tools", '[{"name": "x", "parameters": {"type": "object", "not": {}}}]', ""),
        ("--json-schema", "[]", "--json-schema: the JSON schema is list; expected an object"),
        ("--json-schema", '{"not": {}}', "cannot be enforced"),
    ],
)
def test_a_file_that_is_no_schema_and_no_tools(
    option: str, content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "file.json").write_text(content)
    assert main(["hi", option, str(tmp_path / "file.json")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


def test_tools_go_neither_with_raw_nor_with_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--tools", "x", "--raw"]) == 2 and main(["hi", "--tools", "x", "--json-schema", "y"]) == 2
    assert "cannot be combined with --raw" in capsys.readouterr().err


def test_an_adapter_answers_under_its_name(
    llama: Llama, talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "x", random_adapter(llama.config, 3))
    options = ["hi", "--temperature", "0", "--max-tokens", "9", "--quiet"]
    assert main([*options, "--lora", f"mine={folder}"]) == 0
    found = capsys.readouterr().out
    expected = Llama.load(talker, lora={"mine": folder}).chat(ask("hi"), temperature=0, max_tokens=9, lora="mine")
    assert found == expected.text + "\n"
    other = write_adapter(tmp_path / "y", random_adapter(llama.config, 4))
    assert main([*options, "--lora", f"mine={folder}", "--lora", f"other={other}"]) == 0
    assert capsys.readouterr().out == found  # the first adapter answers
    assert main([*options, "--lora", f"other={other}", "--lora", f"mine={folder}"]) == 0
    assert capsys.readouterr().out != found
    assert main(options) == 0
    assert capsys.readouterr().out != found


def test_two_adapters_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--lora", "a=x", "--lora", "a=y"]) == 2
    assert (
        capsys.readouterr().err
        == "llama3: --lora: two adapters have the same name (a, a); expected a different one for each\n"
    )


@pytest.mark.parametrize("value", ["", "mine", "=x", "mine="])
def test_an_adapter_needs_a_name_and_a_folder(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hi", "--lora", value]) == 2
    assert capsys.readouterr().err == f"llama3: --lora: {value!r} is not NAME=FOLDER\n"
