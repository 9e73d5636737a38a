"""`llama3 "What is RoPE?"`: one prompt, one answer."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3.cli.answer import Answer
from llama3.cli.loading import load, which
from llama3.cli.options import Parser, answer_options, answer_parameters, check_parameter, common_options, whole_number
from llama3.cli.terminal import is_terminal, note, print_json, read_stdin
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.llama import Llama

DESCRIPTION = """\
Answer one prompt. The chat template presents it to the model as a user's message. The answer
streams to standard output; everything else goes to standard error.

If standard input is not a terminal, its text is added to the prompt after an empty line,
without its last newline. Without a prompt, or with "-", standard input is the prompt."""


def parser() -> Parser:
    parser = Parser('llama3 [generate] [OPTIONS] "PROMPT"', DESCRIPTION)
    option = parser.group("prompt")
    option("--system", metavar="TEXT", help="the system message, which says how to answer")
    option(
        "--raw",
        help="continue the prompt as plain text, without the chat template; names like <|eot_id|> are special tokens",
    )
    option("--json-schema", metavar="FILE", help="answer with JSON that fits the JSON Schema in FILE")
    option(
        "--tools",
        metavar="FILE",
        help="offer the tools in FILE, a JSON list; the answer is text or calls of these tools",
    )
    answer_options(parser)
    option = common_options(
        parser, json="print one JSON object at the end: text, tokens, finish_reason, usage, seed, model, device"
    )
    option(
        "--logprobs",
        metavar="N",
        type=whole_number,
        help="with --json: add the log-probability of each token and of the N most likely ones",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    if args.raw and args.system is not None and args.source["system"] == "--system":
        raise RequestError("--raw takes no system message: write it into the prompt, or leave out --raw")
    if args.logprobs is not None and not args.json:
        raise RequestError("--logprobs needs --json")
    if args.tools and (args.raw or args.json_schema):
        raise RequestError(f"--tools cannot be combined with {'--raw' if args.raw else '--json-schema'}")
    parameters = answer_parameters(args)
    check_parameter("logprobs", args.logprobs)
    prompt = read_prompt(args.words)
    messages, parameters["grammar"] = prepare_chat(prompt, args)
    llama = load(args)
    ids = llama.encode(prompt) if args.raw else llama.encode_chat(messages)
    answer = Answer(llama, args.quiet, silent=args.json)
    answer.write(llama.stream(ids, on_prompt=answer.on_prompt, logprobs=args.logprobs, **parameters))
    if args.json:
        print_json(as_dict(llama, answer, args))
    if not args.quiet:
        if is_terminal(sys.stdout):
            note("")
        note(answer.figures(which(llama, args)))
    return 0


def read_prompt(words: list[str]) -> str:
    """The words of the command line, then standard input. Raises RequestError if both are empty."""
    given = " ".join(words)
    if given == "-":
        prompt = read_stdin().removesuffix("\n")
    elif is_terminal(sys.stdin) or sys.stdin is None:
        prompt = given
    else:
        prompt = "\n\n".join(part for part in (given, read_stdin().removesuffix("\n")) if part)
    if not prompt:
        raise RequestError('there is no prompt, and nothing on standard input; try: llama3 "What is RoPE?"')
    return prompt


def read_json_argument(path: str) -> Any:
    """The value in a JSON file. Raises RequestError if the file cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from None


def prepare_chat(prompt: str, args: argparse.Namespace) -> tuple[Sequence[Mapping[str, str]], str | None]:
    """Apply --tools or --json-schema -> (the messages, the grammar that the answer must follow; None: any text)."""
    from llama3.constraint import schema_grammar
    from llama3.tools import prepare

    system = [{"role": "system", "content": args.system}] if args.system is not None else []
    messages = [*system, {"role": "user", "content": prompt}]
    name = "tools" if args.tools else "json_schema"
    try:
        if args.tools:
            return prepare(read_json_argument(args.tools), messages)
        return messages, schema_grammar(read_json_argument(args.json_schema)) if args.json_schema else None
    except RequestError as error:
        raise RequestError(f"{args.source[name]}: {error}") from None


def as_dict(llama: "Llama", answer: Answer, args: argparse.Namespace) -> dict[str, Any]:
    """The object that --json prints."""
    from llama3.tools import read_calls

    stream = answer.stream
    result: dict[str, Any] = {
        "text": answer.text,
        "tokens": stream.tokens,
        "finish_reason": stream.finish_reason,
        "usage": stream.usage.as_dict(),
        "seed": stream.seed,
        "model": str(llama.checkpoint.path),
        "device": llama.device,
    }
    if args.tools:
        finished = stream.finish_reason == "stop"
        result["tool_calls"] = [vars(call) for call in read_calls(answer.text)] if finished else []
    if args.logprobs is not None:
        pieces = answer.pieces[: len(stream.tokens)]  # without the stop token
        result["logprobs"] = [
            {
                **logprob(llama, piece.token, piece.logprob),
                "top": [logprob(llama, *likely) for likely in piece.top_logprobs],
            }
            for piece in pieces
        ]
    return result


def logprob(llama: "Llama", token: int, value: float | None) -> dict[str, Any]:
    tokenizer = llama.tokenizer
    # The model may give ids that the tokenizer lacks: its embedding may have more rows than there are tokens.
    known = tokenizer is not None and token in tokenizer
    return {"token": token, "text": tokenizer.decode([token]) if tokenizer and known else "", "logprob": value}
