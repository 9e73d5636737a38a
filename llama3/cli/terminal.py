"""Output for the terminal: notes and progress bars on standard error, safe text, and columns that fit the width."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llama3.errors import RequestError

# Control characters in a model's answer could take control of the terminal, so they are shown as escapes.
VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is an open terminal; False for None, which Python uses for a closed standard stream."""
    return stream is not None and not stream.closed and stream.isatty()


def paint(text: str, code: str, stream: TextIO) -> str:
    """Add an ANSI style ("2": dim, "36": cyan) if the stream is a terminal with colours (https://no-color.org)."""
    plain = not is_terminal(stream) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{code}m{text}\033[0m"


def note(text: str) -> None:
    """Print a line on standard error, dimmed."""
    print(paint(text, "2", sys.stderr), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Write a part of the answer to standard output at once. A terminal gets no control characters."""
    sys.stdout.write(text.translate(VISIBLE) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def prepare_hub(quiet: bool) -> None:
    """Turn off the hub's progress bars unless stderr is a terminal. Call this before importing huggingface_hub."""
    if quiet or not is_terminal(sys.stderr):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_json(value: object) -> None:
    """Print one line of JSON. Non-ASCII characters are escaped unless standard output is UTF-8."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not utf8, allow_nan=False))


def check_output(path: str) -> None:
    """Raises RequestError unless a file can be written here. Called before the work whose result it is to hold."""
    file, folder = Path(path), Path(path).parent
    if not path:
        raise RequestError("expected the name of a file to write, and found an empty text")
    if file.is_dir():
        raise RequestError(f"{path}: is a folder; expected the name of a file")
    if not folder.is_dir():
        raise RequestError(f"{path}: its folder {'is a file' if folder.exists() else 'does not exist'}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise RequestError(f"{path}: cannot be written: permission denied")


def write_output(path: str, data: bytes, quiet: bool) -> None:
    """Write a file that an option names, and say so. Raises RequestError for what `check_output` cannot know."""
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    if not quiet:
        note(f"{path}: {len(data):,} bytes")


@contextmanager
def progress(label: str, total: int, unit: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, if that is a terminal. Yields a function that takes the amount done so far."""
    if quiet or not is_terminal(sys.stderr):
        yield lambda done: None
        return
    from tqdm import tqdm

    scale = {"unit_scale": True, "unit_divisor": 1000} if unit == "B" else {}
    # rate_noinv: a slow rate stays in tokens per second, where tqdm would turn to seconds per token
    layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit}, {remaining} left, {rate_noinv_fmt}"
    with tqdm(desc=label, total=total, unit=unit, bar_format=layout, leave=False, dynamic_ncols=True, **scale) as bar:

        def show_done(done: int) -> None:
            bar.update(done - bar.n)

        yield show_done


def read_stdin() -> str:
    """All of standard input; empty if it is closed. Raises RequestError if it is not text in its encoding."""
    try:
        return "" if sys.stdin is None else sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_text(error) from None


def not_text(error: UnicodeDecodeError) -> RequestError:
    """The error to raise when standard input cannot be decoded."""
    byte = error.object[error.start]
    return RequestError(f"standard input is not {error.encoding} text: byte {byte:#04x} at {error.start}")


def reflow(text: str) -> str:
    """Wrap paragraphs to the width of the terminal. Indented paragraphs are examples and stay as they are."""
    width = min(shutil.get_terminal_size().columns, 100) - 1
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else "\n".join(wrap(" ".join(p.split()), width)) for p in paragraphs)


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines. Words stay whole, so that a path or a name can be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Lay out two columns and wrap the second one. In a narrow terminal the second goes below the first."""
    width = min(shutil.get_terminal_size().columns, 100)
    left = max(len(first) for first, _ in rows) + 4
    below = width - left < 28
    indent = 6 if below else left
    lines = []
    for first, second in rows:
        wrapped = wrap(second, max(width - indent, 20))
        if below or len(first) + 4 > indent:
            lines += [f"  {first}", *(" " * indent + line for line in wrapped)]
        else:
            lines += [f"  {first}".ljust(indent) + (wrapped[0] if wrapped else "")]
            lines += [" " * indent + line for line in wrapped[1:]]
    return "\n".join(line.rstrip() for line in lines)


def in_bytes(n: float) -> str:
    """A size in decimal units: 16_060_522_496 -> "16.1 GB"."""
    value = float(n)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{n:g} bytes" if unit == "bytes" else f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def per_second(n: int, seconds: float) -> str:
    """A rate, rounded for people: (9000, 2) -> "4,500/s"."""
    rate = n / max(seconds, 1e-9)
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s"
