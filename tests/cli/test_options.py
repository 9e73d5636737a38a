"""Every option: its environment variable, its default, and help that fits the terminal."""

import argparse
from importlib import import_module

import pytest

from llama3.cli.help import COMMANDS
from llama3.cli.options import SAMPLING, Option, Parser, answer_parameters
from llama3.engine import MAX_TOKENS
from llama3.errors import RequestError
from llama3.sampling_params import SamplingParams

OTHERS = {
    "device": "cuda",
    "lora": "y=folder",
    "allow_origin": "https://b.example",
    "ray": "head:2",
}  # second values of options that do not take "2"
VALUES = {
    "lora": "x=folder",
    "limit": "tools=1",
    "allow_origin": "https://a.example",
    "temperature": "0.25",
    "device": "cpu",
    "slots": "3",
    "rtol": "0.5",
    "max_kl": "0.5",
    "min_top1": "0.5",
    "ray": "head:1",
}


def parser_of(command: str) -> Parser:
    parser: Parser = import_module(f"llama3.cli.{command}").parser()
    return parser


def every_option() -> list[tuple[str, Option]]:
    return [(command, option) for command in COMMANDS for option in parser_of(command).options]


def is_switch(option: Option) -> bool:
    return option.default is False


@pytest.mark.parametrize(("command", "option"), every_option())
def test_every_option_has_a_variable_that_does_the_same_and_gives_way_to_it(
    command: str, option: Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA3_MODEL")
    value = VALUES.get(option.name, "1")
    given = parser_of(command).read([option.flag] if is_switch(option) else [option.flag, value])
    assert getattr(parser_of(command).read([]), option.name) == option.default != getattr(given, option.name)

    monkeypatch.setenv(option.variable, value)
    mirrored = parser_of(command).read([])
    assert option.variable == "LLAMA3_" + option.flag[2:].upper().replace("-", "_")
    assert getattr(mirrored, option.name) == getattr(given, option.name)
    assert mirrored.source[option.name] == option.variable and given.source[option.name] == option.flag

    monkeypatch.setenv(option.variable, "0" if is_switch(option) else OTHERS.get(option.name, "2"))
    again = parser_of(command).read([option.flag] if is_switch(option) else [option.flag, value])
    assert getattr(again, option.name) == getattr(given, option.name)

    monkeypatch.setenv(option.variable, "")
    assert getattr(parser_of(command).read([]), option.name) == option.default


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("LLAMA3_TEMPERATURE", "hot", "LLAMA3_TEMPERATURE: 'hot' is not a number"),
        ("LLAMA3_TOP_P", "7", "LLAMA3_TOP_P: top_p is 7.0"),
        ("LLAMA3_SEED", "1.5", "LLAMA3_SEED: '1.5' is not a whole number"),
        ("LLAMA3_MAX_TOKENS", "0", "LLAMA3_MAX_TOKENS: 0 is too small"),
        ("LLAMA3_JSON", "maybe", "LLAMA3_JSON: 'maybe' is neither"),
        ("LLAMA3_DEVICE", "tpu", "LLAMA3_DEVICE: device is 'tpu'"),
        ("LLAMA3_STOP", "a\n\nb", "LLAMA3_STOP: stop holds ''"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RequestError) as caught:
        answer_parameters(parser_of("generate").read(["hi"]))
    assert str(caught.value).startswith(says)


def test_several_stop_strings_by_option_or_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parser_of("generate").read(["--stop", "a", "--stop", "b c"]).stop == ["a", "b c"]
    monkeypatch.setenv("LLAMA3_STOP", "a\nb c")
    assert parser_of("generate").read([]).stop == ["a", "b c"]


def test_nothing_given_means_the_defaults_of_the_python_api() -> None:
    assert answer_parameters(parser_of("generate").read(["hi"])) == {}


def test_the_help_tells_the_true_defaults() -> None:
    defaults = SamplingParams()
    assert SAMPLING.keys() == vars(defaults).keys() - {"logprobs"}
    assert f"(default {defaults.temperature})" in SAMPLING["temperature"][1]
    text = parser_of("generate").format_help()
    assert f"after N tokens (default {MAX_TOKENS})" in text


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = parser_of("generate").format_options()
    assert max(map(len, text.splitlines())) <= columns


def test_what_stands_behind_dashes_is_no_option() -> None:
    args = parser_of("generate").read(["one", "--", "--raw", "-x", "--"])
    assert args.words == ["one", "--raw", "-x", "--"] and not args.raw


def test_errors_do_not_end_the_process() -> None:
    with pytest.raises(RequestError):
        parser_of("generate").read(["--no-such-option"])
    assert isinstance(parser_of("generate"), argparse.ArgumentParser)
