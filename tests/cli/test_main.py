"""The whole program: each error is one line with its exit code; help, signals, closed streams, full disks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama3 import __version__
from llama3.cli import main
from llama3.cli.help import COMMANDS
from llama3.errors import CheckpointError
from llama3.llama import Llama
from tests.cli.running import PATIENCE, PROGRAM, give_stdin, run

NO_TEXT = os.fsdecode(b"caf\xe9")
BAD = [  # (arguments, exit code, a part of the one line of the message)
    (["hi", "--temperature", "hot"], 2, "--temperature: 'hot' is not a number"),
    (["hi", "--temperature", "nan"], 2, "temperature"),
    (["hi", "--temperature", "-1"], 2, "temperature"),
    (["hi", "--top-p", "1.5"], 2, "top_p"),
    (["hi", "--top-k", "0"], 2, "top_k"),
    (["hi", "--top-k", "2.5"], 2, "--top-k: '2.5' is not a whole number"),
    (["hi", "--min-p", "-0.1"], 2, "min_p"),
    (["hi", "--seed", "-1"], 2, "seed"),
    (["hi", "--seed", "9" * 50], 2, "seed"),
    (["hi", "--repetition-penalty", "inf"], 2, "repetition_penalty"),
    (["hi", "--frequency-penalty", "x"], 2, "--frequency-penalty"),
    (["hi", "--presence-penalty", "1000"], 2, "presence_penalty"),
    (["hi", "--max-tokens", "0"], 2, "--max-tokens: 0 is too small"),
    (["hi", "--max-tokens", "99999"], 2, "context window"),
    (["hi", "--stop", ""], 2, "--stop"),
    (["hi", *["--stop", "x"] * 17], 2, "--stop"),
    (["hi", "--device", "gpu"], 2, "--device: device is 'gpu'; expected cpu, cuda, cuda:1"),
    (["hi", "--logprobs", "1"], 2, "--json"),
    (["hi", "--json", "--logprobs", "-1"], 2, "logprobs"),
    (["hi", "--raw", "--system", "x"], 2, "--raw"),
    (["hi", "--temp", "0"], 2, "no such option: --temp; did you mean --temperature?"),
    (["hi", "--model"], 2, "--model: expected one argument"),
    (["hi", "--model", "/no/such/folder"], 1, "/no/such/folder"),
    (["hi", "--model", "EMPTY"], 1, "EMPTY"),
    (["hi", "--model", "BROKEN"], 1, "model.safetensors"),
    ([NO_TEXT], 2, "not UTF-8"),
    (["--", NO_TEXT], 2, "not UTF-8"),
    (["hi", "--system", NO_TEXT], 2, "--system"),
    ([], 2, "no prompt"),
    ([""], 2, "no prompt"),
    (["--model", "x", "chat"], 2, "llama3 chat"),
    (["chat", "hi"], 2, "chat takes no prompt"),
    (["chat", "--top-p", "2"], 2, "top_p"),
    (["chat", "--raw"], 2, "no such option: --raw"),
    (["download"], 2, "download takes one name"),
    (["download", "a/b", "c/d"], 2, "download takes one name"),
    (["download", "a b"], 1, "a b"),
    (["quantize"], 2, "quantize takes one model"),
    (["quantize", "EMPTY"], 2, "--to FOLDER"),
    (["quantize", "EMPTY", "--to", "new", "--bits", "3"], 2, "--bits is 3; expected 8 or 4"),
    (["quantize", "EMPTY", "--to", "new", "--bits", "all"], 2, "--bits: 'all' is not a whole number"),
    (["quantize", "/no/such/folder", "--to", "new"], 1, "/no/such/folder"),
    (["quantize", "EMPTY", "--to", "new"], 1, "EMPTY"),
    (["quantize", "EMPTY", "--to", "EMPTY"], 1, "the same folder"),
    (["tokenize"], 2, "there is no text"),
    (["tokenize", "--decode", "1", "x"], 2, "'x' is not a token id"),
    (["tokenize", "--decode", "99999999"], 2, "99999999"),
    (["tokenize", "--decode", "--chat", "1"], 2, "only one of"),
    (["tokenize", "x", "--model", "EMPTY"], 1, "EMPTY"),
    (["info", "EMPTY"], 1, "EMPTY"),
    (["info", "a", "b"], 2, "one model"),
    (["compare"], 2, "reference file"),
    (["compare", "no-such-file"], 1, "no-such-file"),
    (["compare", "no-such-file", "--rtol", "-1"], 2, "rtol"),
    (["compare", "BROKEN/config.json"], 1, "config.json"),
]


@pytest.mark.parametrize(("argv", "code", "says"), BAD)
def test_bad_input_is_one_line_and_an_exit_code(
    argv: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "config.json").write_text("{")
    (tmp_path / "BROKEN" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llama3: ") and err.endswith("\n") and err.count("\n") == 1
    assert says in err and "this is a bug" not in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError("Unable to allocate 9 GiB"), 1, "llama3: out of memory (Unable to allocate 9 GiB)"),
        (MemoryError(), 1, "llama3: out of memory"),
        (OSError(28, "No space left on device", "/tmp/x"), 1, "llama3: /tmp/x: No space left on device\n"),
        (CheckpointError("m: bad"), 1, "llama3: m: bad\n"),
        (FileNotFoundError("weights/demo is missing"), 1, "llama3: weights/demo is missing\n"),
        (RecursionError("deep\ndeeper"), 1, "llama3: this is a bug: RecursionError: deep deeper"),
        (ImportError("no numpy"), 1, "no numpy"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_whatever_is_raised_becomes_a_line_and_an_exit_code(
    error: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **keywords: object) -> None:
        raise error

    monkeypatch.setattr(Llama, "load", fail)
    assert main(["hi"]) == code
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == (1 if says else 0)

    monkeypatch.setenv("LLAMA3_DEBUG", "1")
    assert main(["hi"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_prompt_that_is_a_commands_name_has_two_ways_in(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-tokens", "3", "--seed", "1"]
    assert main(["generate", "chat", *options]) == 0
    one = capsys.readouterr().out
    assert main([*options, "--", "chat"]) == 0
    assert capsys.readouterr().out == one
    assert main(["--max-tokens", "3", "--seed", "1", "chat", "about", "it"]) == 0


def test_words_need_no_quotes_and_options_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "What is it?", "--max-tokens", "5"]) == 0
    one = capsys.readouterr().out
    assert main(["What", "--seed=1", "is", "it?", "--max-tokens=5"]) == 0
    assert capsys.readouterr().out == one


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_shows_every_command_and_exit_code(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {command}" in out for command in COMMANDS)
    assert all(f"\n  {code} " in out for code in (0, 1, 2, 3, 130, 141))
    assert "--temperature" in out and err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"llama3 {command}" in out.replace("[generate]", "generate") and "--quiet" in out and err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llama3 {__version__}\n"


def test_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["hi"], ["chat"], ["tokenize", "-"]):
        give_stdin(monkeypatch, b"ab\xff")
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == "" and err == "llama3: standard input is not utf-8 text: byte 0xff at 2\n"


# The tests below need a process of their own.


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*PROGRAM, "hi", "--max-tokens", "1000", "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full, a disk that is always full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "hi", "--quiet"], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"llama3: input or output: No space left on device\n"


def test_ctrl_c_while_it_answers_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*PROGRAM, "hi", "--max-tokens", "1900"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith(b"\n")
        assert process.stderr.read() == b""
        assert process.wait() == 130


INTERRUPTED_IMPORT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from llama3.cli import main
sys.argv[1:] = ["hi"]
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["llama3.cli.help", "llama3.cli.generate", "llama3.cli.answer", "numpy", "tiktoken"])
def test_ctrl_c_while_it_imports_ends_it_quietly(module: str) -> None:
    code = INTERRUPTED_IMPORT.replace("MODULE", repr(module))
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("test", ["while_it_answers_ends_it_quietly", "while_it_imports_ends_it_quietly[numpy]"])
def test_ctrl_c_tests_pass_where_it_is_ignored(test: str) -> None:
    """As under `nohup`, or in a background job of a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::test_ctrl_c_{test}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0 and b"1 passed" in done.stdout, done.stdout.decode()


def test_a_terminal_without_unicode_shows_escapes(talker: Path) -> None:
    done = run("tokenize", "--decode", "104", "195", "169", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"h\\xe9\n", b"")
    done = run("tokenize", "--json", "hé", "--model", str(talker), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"\\ufffd" in done.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_no_reason_to_fail(closed: str) -> None:
    script = f'"$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *PROGRAM, "hi", "--max-tokens", "2"],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
