"""`llama3 batch FILE --to FILE`: answer a file of requests. `batch.py`, `batch_request.py`, `batch_file.py` do it."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from llama3.cli.loading import adapters, load, which, which_of
from llama3.cli.options import Parser, common_options, lora_option, positive, ray_options
from llama3.cli.terminal import check_output, is_terminal, note, per_second
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.batch_file import AnswerFile
    from llama3.batch_request import Line

DESCRIPTION = """\
Answer a file of requests, one on each line, in the order of the lines. A request is a line of OpenAI's
batch files (custom_id, method, url, body) for /v1/chat/completions, /v1/completions or
/v1/responses, or an input object of Workers AI. What is wrong with a request stands in its answer.

  llama3 batch requests.jsonl --to answers.jsonl

If it is stopped or killed, the same command goes on where it ended. --ray answers on many machines
(extra ray). docs/batch.md has examples."""


def parser() -> Parser:
    parser = Parser("llama3 batch FILE --to FILE [OPTIONS]", DESCRIPTION)
    option = parser.group("batch")
    option("--to", metavar="FILE", help="the file of answers; - for standard output (FILE - is standard input)")
    option("--slots", metavar="N", type=positive, default=4, help="requests that run at once, in one batch (default 4)")
    lora_option(option)
    ray_options(option, "answer")
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
                note(f"{answers.name} has all {total:,} answers")
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
    if args.replicas is not None and args.ray is None:
        raise RequestError(f"{args.source['replicas']} is the number of copies on a Ray cluster; expected --ray, too")
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


class Model(NamedTuple):
    """What answers requests: a model in this process, or copies of it on a cluster."""

    answer_line: "Callable[[bytes], Line]"
    stop: Callable[[], None]
    slots: int
    name: str  # for people, with the device


def answer_all(args: argparse.Namespace, requests: Iterator[bytes], answers: "AnswerFile", total: int | None) -> None:
    """Load the model, and append an answer for each request that is left."""
    from llama3.batch import in_order

    before, tokens, errors = answers.n, 0, 0
    if before and not args.quiet:
        note(f"{answers.name} has {before:,} of {total:,} answers; going on")
    with model_here(args) if args.ray is None else models_on_ray(args) as model:
        start = perf_counter()
        with (
            closing(in_order(requests, model.answer_line, model.slots, model.stop)) as lines,
            progress(total, before, args.quiet) as show,
        ):
            for line in answers.append(lines, most_failures=4 * model.slots):
                tokens, errors = tokens + line.tokens, errors + (line.error is not None)
                show(answers.n, per_second(tokens, perf_counter() - start))
        if not args.quiet:
            seconds, found = perf_counter() - start, f"{errors:,} of them errors; " if errors else ""
            note(
                f"{answers.n - before:,} answers, {found}{tokens:,} tokens, {per_second(tokens, seconds)}; "
                f"{seconds:.1f} s; {model.name}"
            )


@contextmanager
def model_here(args: argparse.Namespace) -> Iterator[Model]:
    """The model in this process."""
    from llama3.batch_request import Answerer

    llama = load(args)
    answerer = Answerer(llama)
    yield Model(answerer.answer_line, answerer.close, args.slots, which(llama, args))


@contextmanager
def models_on_ray(args: argparse.Namespace) -> Iterator[Model]:
    """Copies of the model on a cluster; one of them is loaded, and the others soon are."""
    from llama3.ray.cluster import cluster
    from llama3.ray.dispatch import Replicas, loader
    from llama3.ray.placement import place

    loading = loader(args.model, adapters(args), linear=args.linear, activations=args.activations)
    with cluster(args.ray):
        placement = place(args.device, args.replicas)
        with closing(Replicas(loading, placement, args.slots)) as replicas:
            path, device = replicas.wait()
            copies = f", {placement.replicas} replicas" if placement.replicas > 1 else ""
            yield Model(replicas.answer_line, replicas.close, replicas.slots, which_of(path, device, args) + copies)


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
