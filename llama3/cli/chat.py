"""`llama3 chat`: a conversation. It reads lines from the keyboard or a pipe, and writes answers to standard output."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama3.cli.answer import Answer
from llama3.cli.keyboard import QUOTES, line_editing, piped_line, read_message, typed_line
from llama3.cli.loading import load, which
from llama3.cli.options import (
    SAMPLING,
    Parser,
    answer_options,
    answer_parameters,
    check_parameter,
    common_options,
    number,
    positive,
    whole_number,
)
from llama3.cli.terminal import columns, is_terminal, note
from llama3.errors import Llama3Error, RequestError

if TYPE_CHECKING:
    from llama3.llama import Llama

DESCRIPTION = """\
Hold a conversation. Each question is sent together with the dialogue so far. Type /help for
a list of commands. Input may also come from a pipe: each line is a message and gets an answer."""

HELP = {
    "/system TEXT": "set the system message: how to answer; /system alone shows it, /system off removes it",
    "/set NAME VALUE": "set a parameter: /set temperature 0, /set seed off; /set alone shows all parameters",
    "/clear": "forget the dialogue; the system message and the parameters stay",
    "/help": "show this list",
    "/bye": "quit; so does Ctrl-D",
    QUOTES: "begin and end a message of several lines",
    "Ctrl-C": "stop an answer; the part that was shown stays in the dialogue",
}


def parser() -> Parser:
    parser = Parser("llama3 chat [OPTIONS]", DESCRIPTION)
    parser.group("prompt")("--system", metavar="TEXT", help="the system message, which says how to answer")
    answer_options(parser)
    common_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if args.words:
        raise RequestError(f"chat takes no prompt ({' '.join(args.words)!r}): start it, then type the prompt")
    parameters = answer_parameters(args)
    chat = Chat(load(args), args.system, parameters, args.quiet)
    if not is_terminal(sys.stdin):
        return chat.read_all(piped_line)
    if not args.quiet:
        note(f"{which(chat.llama, args)}; /help lists the commands, Ctrl-D quits")
    with line_editing():
        return chat.read_all(typed_line)


class Chat:
    """A conversation: the dialogue so far, the system message, and the parameters of the next answer."""

    def __init__(self, llama: "Llama", system: str | None, parameters: dict[str, Any], quiet: bool):
        self.llama, self.system, self.parameters, self.quiet = llama, system, parameters, quiet
        self.dialogue: list[dict[str, str]] = []  # messages of user and assistant, alternating
        self.failed = False

    def read_all(self, read: Callable[[str], str]) -> int:
        """Handle messages until the input ends or /bye -> the exit code.

        read: shows its argument as a prompt and returns a line, or raises EOFError; `typed_line` or `piped_line`.
        """
        typed = read is typed_line
        while True:
            try:
                command, text = read_message(read)
                if command in ("/bye", "/exit", "/quit"):
                    return 0
                with self.report_errors():
                    if command:
                        self.run_command(command, text)
                    elif text:
                        self.ask(text)
            except EOFError:
                if typed:
                    print(file=sys.stderr)
                return 2 if self.failed and not typed else 0
            except KeyboardInterrupt:
                if not typed:
                    raise
                note("\n(Ctrl-D or /bye quits)")

    @contextmanager
    def report_errors(self) -> Iterator[None]:
        """Print an error and go on: a bad message must not end the dialogue."""
        try:
            yield
        except Llama3Error as error:
            self.failed = True
            print(f"llama3: {error}", file=sys.stderr, flush=True)

    def ask(self, message: str) -> None:
        """Answer one message. It becomes part of the dialogue only if the answer has begun."""
        turn = [{"role": "user", "content": message}]
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        prompt = self.llama.encode_chat([*system, *self.dialogue, *turn])
        answer = Answer(self.llama, self.quiet)
        try:
            stream = self.llama.stream(prompt, on_prompt=answer.on_prompt, **self.parameters)
        except RequestError as error:
            shorter = "; /set max_tokens N shortens the answer" if "max_tokens" in self.parameters else ""
            raise RequestError(f"{error} (/clear forgets the dialogue{shorter})") from None
        try:
            answer.write(stream)
        except KeyboardInterrupt:
            if not is_terminal(sys.stdin):
                raise
            if not answer.text:
                note("(stopped before the answer began; the question is not kept)")
        if answer.text:
            self.dialogue += [*turn, {"role": "assistant", "content": answer.text}]
        if answer.pieces and is_terminal(sys.stdin) and not self.quiet:
            note(answer.short_figures() + "\n")

    def run_command(self, command: str, text: str) -> None:
        """Run a /command. Raises RequestError if it is unknown or its text is wrong."""
        if command == "/system":
            self.set_system(text)
        elif command == "/set":
            self.set(*text.split(maxsplit=1))
        elif command == "/clear":
            self.dialogue.clear()
            self.say("the dialogue is forgotten")
        elif command in ("/help", "/?"):
            self.say(columns(list(HELP.items())))
        else:
            raise RequestError(
                f"there is no {command}; /help lists the commands, and {QUOTES}/...{QUOTES} sends a message"
            )

    def set_system(self, text: str) -> None:
        """Change the system message if there is a text ("off" removes it), then show it."""
        if text:
            self.system = None if text == "off" else text
        self.say("no system message" if self.system is None else f"system message: {self.system}")

    def set(self, name: str | None = None, value: str | None = None) -> None:
        """Change a parameter if there is a value, then show it; without a name, show all parameters."""
        from llama3.request import MAX_TOKENS
        from llama3.sampling_params import SamplingParams

        names = ["max_tokens", "stop", *SAMPLING]
        if name is not None:
            name = name.replace("-", "_")
            if name not in names:
                raise RequestError(f"there is no parameter {name}; there are {', '.join(names)}")
            if value is not None:
                self.change(name, value)
            names = [name]
        values = {"max_tokens": MAX_TOKENS, "stop": None, **vars(SamplingParams()), **self.parameters}
        self.say(columns([(name, "off" if values[name] is None else str(values[name])) for name in names]))

    def change(self, name: str, value: str) -> None:
        """Set a parameter, or return to its default if the value is "off"."""
        if value in ("off", "none", "default"):
            self.parameters.pop(name, None)
            return
        try:
            if name == "max_tokens":
                parsed: Any = positive(value)
            elif name == "stop":
                parsed = [value]
            else:
                parsed = (whole_number if SAMPLING[name][0] else number)(value)
        except argparse.ArgumentTypeError as error:
            raise RequestError(f"{name}: {error}") from None
        check_parameter(name, parsed)
        self.parameters[name] = parsed

    def say(self, text: str) -> None:
        """Print a note, unless --quiet was given."""
        if not self.quiet:
            note(text)
