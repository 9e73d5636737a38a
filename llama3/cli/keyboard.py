"""Read messages for `chat`: from the keyboard, with line editing and a history, or from a pipe."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama3.cli.terminal import is_terminal, not_text, note

QUOTES = '"""'
HISTORY_LINES = 1000


def read_message(read: Callable[[str], str]) -> tuple[str, str]:
    '''Read a line, or all lines between two """ -> (the /command at its beginning or "", the rest of the text).'''
    line = read(">>> ").strip()
    command, _, text = line.partition(" ") if line.startswith("/") else ("", "", line)
    text = text.strip()
    if not text.startswith(QUOTES):
        return command, text
    lines = [text.removeprefix(QUOTES)]
    while QUOTES not in lines[-1]:
        try:
            lines.append(read("... "))
        except EOFError:  # the end of the input also ends the message
            break
    return command, "\n".join(lines).partition(QUOTES)[0].strip()


def typed_line(prompt: str) -> str:
    """Read a line from the keyboard. The prompt goes to the screen even if answers are redirected to a file."""
    try:
        if is_terminal(sys.stdout):
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return piped_line(prompt)
    except UnicodeDecodeError as error:
        note(str(not_text(error)))
        return ""


def piped_line(prompt: str) -> str:
    """Read a line from standard input, without showing the prompt. Raises EOFError at the end."""
    try:
        line = sys.stdin.readline() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise not_text(error) from None
    if not line:
        raise EOFError
    return line.removesuffix("\n")


@contextmanager
def line_editing() -> Iterator[None]:
    """Line editing, with a history that is kept in a file between runs if that file can be written."""
    try:
        import readline
    except ImportError:  # some systems, such as Windows, have no readline
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = state / "llama3" / "history"
    with suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)  # private: it holds what the user asked
            readline.write_history_file(file)
