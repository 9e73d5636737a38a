"""Command line options, built on argparse. The environment variable LLAMA3_NAME can also set an option --name."""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from llama3.cli.terminal import reflow
from llama3.errors import RequestError

SAMPLING = {  # name -> (is it a whole number?, help); `SamplingParams` holds the defaults
    "temperature": (False, "0: always the most likely token; higher: more varied (default 0.6)"),
    "top_p": (False, "use only the most likely tokens that together have probability X"),
    "top_k": (True, "use only the N most likely tokens"),
    "min_p": (False, "use only tokens at least X times as likely as the most likely one"),
    "seed": (True, "repeat an answer; its seed is shown below it"),
    "repetition_penalty": (False, "above 1: tokens of the prompt and the answer become less likely"),
    "frequency_penalty": (False, "above 0: a token becomes less likely each time it is used in the answer"),
    "presence_penalty": (False, "above 0: a token becomes less likely once it is used in the answer"),
}


class Option(NamedTuple):
    """One option: its name, its flag on the command line, and how its value is read."""

    name: str
    flag: str
    convert: Callable[[str], Any]
    repeat: bool
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets this option."""
        return "LLAMA3_" + self.name.upper()

    def from_environment(self) -> Any:
        """The value in the environment; None if it is unset or empty. A repeatable option takes one value a line."""
        value = os.environ.get(self.variable)
        if not value:
            return None
        try:
            return [self.convert(line) for line in value.splitlines()] if self.repeat else self.convert(value)
        except argparse.ArgumentTypeError as error:
            raise RequestError(f"{self.variable}: {error}") from None


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as RequestError and reads missing options from the environment."""

    def __init__(self, usage: str, description: str):
        super().__init__(
            prog="llama3",
            usage=usage,
            description=reflow(description),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28),
            allow_abbrev=False,
            add_help=False,
        )
        self.options: list[Option] = []
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)

    def group(self, title: str) -> Callable[..., None]:
        """Start a group of options -> a function that adds one: (*flags, help, [metavar, type, default, repeat, bare]).

        bare: what an option means that is given without a value.
        """
        group = self.add_argument_group(title)

        def option(
            *flags: str,
            help: str,
            metavar: str | None = None,
            type: Callable[[str], Any] = text,
            default: Any = None,
            repeat: bool = False,
            bare: str | None = None,
        ) -> None:
            # argparse gets no default, so that `read` can see whether the option was given. No metavar: a switch.
            settings: dict[str, Any] = {"help": help, "default": None}
            if metavar is None:
                settings |= {"action": "store_const", "const": True}
                type, default = boolean, default or False
            else:
                settings |= {"action": "append" if repeat else "store", "metavar": metavar, "type": type}
                settings |= {"nargs": "?", "const": bare} if bare else {}
            name = group.add_argument(*flags, **settings).dest
            self.options.append(Option(name, flags[-1], type, repeat, default))

        return option

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse arguments, then fill in missing options from the environment. Raises RequestError.

        `args.source` maps each option's name to where its value comes from: the flag or the variable.
        """
        argv, literal = split_at_dashes(argv)
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            wrong, known = unknown[0].split("=")[0], [option.flag for option in self.options]
            close = [flag for flag in known if flag.startswith(wrong)] or difflib.get_close_matches(wrong, known)
            raise RequestError(f"no such option: {wrong}" + (f"; did you mean {close[0]}?" if close else ""))
        try:
            args.words = [text(word) for word in (*args.words, *literal)]
        except argparse.ArgumentTypeError as error:
            raise RequestError(str(error)) from None
        args.source = {}
        for option in self.options:
            value, args.source[option.name] = getattr(args, option.name), option.flag
            if value is None and (value := option.from_environment()) is not None:
                args.source[option.name] = option.variable
            setattr(args, option.name, option.default if value is None else value)
        return args

    def format_options(self) -> str:
        """The help of the options, without usage and description."""
        usage, description, self.usage, self.description = self.usage, self.description, argparse.SUPPRESS, None
        try:
            return self.format_help().strip()
        finally:
            self.usage, self.description = usage, description

    def error(self, message: str) -> NoReturn:
        raise RequestError(message.removeprefix("argument "))


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at the first `--` -> (arguments before it, words after it, which are never options)."""
    end = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])


def lora_option(option: Callable[..., None]) -> None:
    """Add --lora for a command whose requests name their adapters. option: of a parser's group."""
    option(
        "--lora",
        metavar="NAME=FOLDER",
        type=adapter,
        repeat=True,
        help="load a LoRA adapter that requests may name; repeatable",
    )


def ray_options(option: Callable[..., None], verb: str) -> None:
    """Add --ray and --replicas. verb: what the command does there."""
    option(
        "--ray",
        metavar="HOST:PORT",
        type=cluster_address,
        bare="auto",
        help=f"{verb} on a Ray cluster; without HOST:PORT, on the one that runs here, or on one of this machine alone",
    )
    option(
        "--replicas",
        metavar="N",
        type=positive,
        help="with --ray: copies of the model, each with its own slots (default: one a GPU, or one a machine)",
    )


def common_options(parser: Parser, *, device: bool = True, json: str | None = None) -> Callable[..., None]:
    """Add --model, --device if the command computes, and `output_options`, whose function is returned."""
    option = parser.group("model")
    option(
        "--model",
        metavar="MODEL",
        help="a folder, or OWNER/NAME on the Hugging Face hub (default: the included demo)",
    )
    if device:
        option(
            "--device",
            metavar="DEVICE",
            type=device_name,
            default="auto",
            help="cpu, cuda, cuda:1 for the second GPU, cuda:0-3 for four GPUs together (or cpu:0-1, "
            "two processes: docs/tensor_parallel.md), or auto (default): a GPU if the model can run there",
        )
        option(
            "--linear",
            metavar="KIND",
            help="what multiplies on the CPU: numpy, numba, amx, or auto (default): the fastest that is there",
        )
        option(
            "--activations",
            metavar="DTYPE",
            default="float32",
            help="float32 (default), or bfloat16: faster on a CPU with AMX, and rounded",
        )
    return output_options(parser, json)


def output_options(parser: Parser, json: str | None = None) -> Callable[..., None]:
    """Add --json (if its help is given), --quiet and --help -> a function that adds an option to the output group."""
    option = parser.group("output")
    if json:
        option("--json", help=json)
    option("--quiet", help="write nothing but errors to standard error")
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this help and exit")
    return option


def answer_options(parser: Parser) -> None:
    """Add the options that control how tokens are chosen and where the answer ends."""
    option = parser.group("answer")
    option(
        "--max-tokens",
        metavar="N",
        type=positive,
        help="end the answer after N tokens (default 256); not given: also where the context window ends",
    )
    option("--stop", metavar="TEXT", repeat=True, help="end the answer before TEXT; repeatable")
    option(
        "--lora",
        metavar="NAME=FOLDER",
        type=adapter,
        repeat=True,
        help="answer with a LoRA adapter; if repeated, with the first one",
    )
    sampling_options(option)


def sampling_options(option: Callable[..., None]) -> None:
    """Add the options of the sampler to a group."""
    for name, (whole, help) in SAMPLING.items():
        convert, metavar = (whole_number, "N") if whole else (number, "X")
        option("--" + name.replace("_", "-"), metavar=metavar, type=convert, help=help)


def answer_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The given `answer_options`, checked, as keyword arguments of `Llama.stream`. Raises RequestError."""
    names = ("max_tokens", "stop", *SAMPLING)
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    for name, value in given.items():
        try:
            check_parameter(name, value)
        except RequestError as error:
            raise RequestError(f"{args.source[name]}: {error}") from None
    return given | ({"lora": args.lora[0][0]} if getattr(args, "lora", None) else {})


def check_parameter(name: str, value: Any) -> None:
    """Raise RequestError for a bad value now, not after the minutes that loading a large model takes."""
    from llama3.sampling_params import SamplingParams
    from llama3.text import check_stops

    if name == "stop":
        check_stops(value)
    elif name != "max_tokens":  # `positive` checks max_tokens, and the engine compares it with the context window
        SamplingParams(**{name: value})


# Converters for argparse. It shows the message of an ArgumentTypeError, but not of a ValueError.


def number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None


def whole_number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number") from None


def positive(value: str) -> int:
    n = whole_number(value)
    if n < 1:
        raise argparse.ArgumentTypeError(f"{n} is too small; expected 1 or more")
    return n


def boolean(value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.lower() not in words:
        raise argparse.ArgumentTypeError(f"{value!r} is neither 1 (true, yes, on) nor 0 (false, no, off)")
    return words[value.lower()]


def adapter(value: str) -> tuple[str, str]:
    """NAME=FOLDER -> (name, folder)."""
    name, equals, folder = text(value).partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=FOLDER")
    return name, folder


def device_name(value: str) -> str:
    from llama3.cuda import check_device

    try:
        return check_device(value)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def cluster_address(value: str) -> str:
    from llama3.ray.cluster import check_address

    try:
        return check_address(text(value))
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def text(value: str) -> str:
    """Refuse lone surrogates: Python puts them in place of command line bytes that are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{value!r} is not UTF-8 text") from None
    return value
