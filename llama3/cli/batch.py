"""`llama3 batch FILE --to FILE`: answer a file of requests. `batch.py`, `batch_request.py`, `batch_file.py` do it."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, BinaryIO

from llama3.cli.loading import load, which
from llama3.cli.options import Parser, common_options, lora_option, positive
from llama3.cli.terminal import check_output, is_terminal, note, per_second
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.batch_file import AnswerFile

DESCRIPTION = """\
Answer a file of requests, one on each line, in the order of the lines. A request is a line of OpenAI's
batch files (custom_id, method, url, body) for /v1/chat/completions, /v1/completions or
/v1/responses, or an input object of Workers AI. What is wrong with a request stands in its answer.

  llama3 batch requests.jsonl --to answers.jsonl

If it is stopped or killed, the same command goes on where it ended. docs/batch.md has examples."""


def parser() -> Parser:
    parser = Parser("llama3 batch FILE --to FILE [OPTIONS]", DESCRIPTION)
    option = parser.group("batch")
    option("--to", metavar="FILE", help="the file of answers; - for standard output (FILE - is standard input)")
    option("--slots", metavar="N", type=positive, default=4, help="requests that run at once, in one batch (default 4)")
    lora_option(option)
    common_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    source, target = check(args)
    from llama3.batch_file import AnswerFile, read_lines

    with ExitStack() as stack:
        file, total = open_requests(source)
        stack.callback(file.close)
        requests = read_lines(file)
        answers = AnswerFile(target, None if total is None else requests)
        stack.callback(answers.close)
        if answers.n == total:
            if not args.quiet:
                note(f"{target} has all {total:,} answers")
            return 0
        try:
            answer_all(args, requests, answers, total)
        except KeyboardInterrupt:
            if not args.quiet:
                note(f"stopped; {answers.go_on()}")
            raise
    return 0


def check(args: argparse.Namespace) -> tuple[str, str]:
    """-> (the file of requests, the file of answers), or "-" for either. Raises RequestError."""
    if len(args.words) != 1:
        raise RequestError(
            f"batch takes the file of requests, and found {len(args.words)} words: llama3 batch FILE --to FILE"
        )
    (source,) = args.words
    if args.to is None:
        raise RequestError("expected --to FILE, where the answers go; --to - is standard output")
    if args.to != "-":
        check_output(args.to)
        if source != "-" and Path(args.to).exists() and Path(source).exists() and os.path.samefile(source, args.to):
            raise RequestError(f"--to: {args.to} is the file of requests; expected another one")
    return source, args.to


def open_requests(source: str) -> tuple[BinaryIO, int | None]:
    """-> (the file, how many requests it holds; None for a pipe). Raises RequestError if it cannot be read."""
    from llama3.batch_file import read_lines

    if source == "-":
        return (io.BytesIO() if sys.stdin is None else sys.stdin.buffer), None
    try:
        file = open(source, "rb")  # noqa: SIM115 - the caller closes it
        if not Path(source).is_file():
            return file, None
        total = sum(1 for _ in read_lines(file))
        file.seek(0)
        return file, total
    except OSError as error:
        raise RequestError(f"{source}: {error.strerror}") from None


def answer_all(args: argparse.Namespace, requests: Iterator[bytes], answers: "AnswerFile", total: int | None) -> None:
    """Load the model, and append an answer for each request that is left."""
    from llama3.batch import in_order
    from llama3.batch_request import Answerer

    before, tokens, errors = answers.n, 0, 0
    if before and not args.quiet:
        note(f"{answers.name} has {before:,} of {total:,} answers; going on")
    llama = load(args)
    answerer, start = Answerer(llama), perf_counter()
    with (
        closing(in_order(requests, answerer.answer_line, args.slots, answerer.close)) as lines,
        progress(total, before, args.quiet) as show,
    ):
        for line in answers.append(lines, most_failures=4 * args.slots):
            tokens, errors = tokens + line.tokens, errors + (line.error is not None)
            show(answers.n, per_second(tokens, perf_counter() - start))
    if not args.quiet:
        seconds, found = perf_counter() - start, f"{errors:,} of them errors; " if errors else ""
        note(
            f"{answers.n - before:,} answers, {found}{tokens:,} tokens, {per_second(tokens, seconds)}; "
            f"{seconds:.1f} s; {which(llama, args)}"
        )


@contextmanager
def progress(total: int | None, before: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on standard error, if that is a terminal. Yields a function that takes what it shows: how many
    answers there are, and how many tokens a second.
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda done, rate: None
        return
    from tqdm import tqdm

    share = " {percentage:3.0f}%|{bar}|" if total is not None else ""
    left = "/{total_fmt} requests, {remaining} left" if total is not None else " requests"
    layout = f"answering{share} {{n_fmt}}{left}{{postfix}}"
    with tqdm(total=total, initial=before, bar_format=layout, leave=False, dynamic_ncols=True) as bar:

        def show(done: int, rate: str) -> None:
            bar.set_postfix_str(f"tokens {rate}", refresh=False)
            bar.update(done - bar.n)

        yield show
