"""What the screen gets: notes and bars on standard error, text without control codes, columns that fit."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from llama3.errors import RequestError

# A model's answer must not drive the terminal: ESC and the like are shown, not sent.
VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def paint(text: str, code: str, stream: TextIO) -> str:
    """Text in an ANSI style ("2": dim, "36": cyan), if the stream is a terminal that wants it (https://no-color.org)."""
    plain = not is_terminal(stream) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{code}m{text}\033[0m"


def note(text: str) -> None:
    """A line on standard error, in the background."""
    print(paint(text, "2", sys.stderr), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A part of the answer, at once."""
    sys.stdout.write(text.translate(VISIBLE) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def prepare_hub(quiet: bool) -> None:
    """The hub's own bars, like ours, are for a terminal. To be called before huggingface_hub is imported."""
    if quiet or not is_terminal(sys.stderr):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_json(value: object) -> None:
    """One line. Escapes keep it JSON where standard output cannot show every character."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not utf8, allow_nan=False))


@contextmanager
def progress(label: str, total: int, unit: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; call the function with how much is done."""
    if quiet or not is_terminal(sys.stderr):
        yield lambda done: None
        return
    from tqdm import tqdm

    scale = {"unit_scale": True, "unit_divisor": 1000} if unit == "B" else {}
    with tqdm(desc=label, total=total, unit=unit, leave=False, dynamic_ncols=True, **scale) as bar:

        def show_done(done: int) -> None:
            bar.update(done - bar.n)

        yield show_done


def read_stdin() -> str:
    """All of standard input, nothing if it is closed. Raises RequestError if it is not text."""
    try:
        return "" if sys.stdin is None else sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_text(error) from None


def not_text(error: UnicodeDecodeError) -> RequestError:
    byte = error.object[error.start]
    return RequestError(f"standard input is not {error.encoding} text: byte {byte:#04x} at {error.start}")


def reflow(text: str) -> str:
    """Paragraphs broken anew for this terminal; indented ones, which are examples, stay as they are."""
    width = min(shutil.get_terminal_size().columns, 100) - 1
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(" ".join(p.split()), width) for p in paragraphs)


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, the second one wrapped; in a narrow terminal it goes below the first."""
    width = min(shutil.get_terminal_size().columns, 100)
    left = max(len(first) for first, _ in rows) + 4
    below = width - left < 28
    indent = 6 if below else left
    lines = []
    for first, second in rows:
        # A path that is broken could not be copied.
        wrapped = textwrap.wrap(second, max(width - indent, 20), break_long_words=False, break_on_hyphens=False)
        if below or len(first) + 4 > indent:
            lines += [f"  {first}", *(" " * indent + line for line in wrapped)]
        else:
            lines += [f"  {first}".ljust(indent) + (wrapped[0] if wrapped else "")]
            lines += [" " * indent + line for line in wrapped[1:]]
    return "\n".join(line.rstrip() for line in lines)


def in_bytes(n: float) -> str:
    """16_060_522_496 -> "16.1 GB" """
    value = float(n)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{n:g} bytes" if unit == "bytes" else f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def per_second(n: int, seconds: float) -> str:
    rate = n / max(seconds, 1e-9)
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s"
