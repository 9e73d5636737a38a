"""`llama3 inspect "What is RoPE?"`: look inside the model while it answers. `llama3/inspect/` does the work."""

import argparse
import sys
from typing import TYPE_CHECKING

from llama3.cli.generate import read_prompt
from llama3.cli.loading import load
from llama3.cli.options import Parser, answer_parameters, common_options, positive, sampling_options
from llama3.cli.terminal import VISIBLE, check_output, paint, print_json, write_output
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.inspect.run import Inspection

DESCRIPTION = """\
Answer a prompt and show what happens inside: its tokens; each generated token with its
probability and its rivals; what the heads attend to; the residual stream; time and bytes of each
operation. The seed is 0 unless it is given. docs/inspect.md explains what is shown.

  llama3 inspect "What is RoPE?" --html page.html
  llama3 inspect "What is RoPE?" --temperature 0 --attention 0.1
  llama3 inspect "What is RoPE?" --temperature 0 --without 0.1"""


def parser() -> Parser:
    parser = Parser('llama3 inspect [OPTIONS] "PROMPT"', DESCRIPTION)
    option = parser.group("prompt")
    option("--system", metavar="TEXT", help="the system message, which says how to answer")
    option("--raw", help="continue the prompt as plain text, without the chat template")
    option = parser.group("view")
    option("--lens", help="show the likeliest next token at points of the residual stream")
    option("--attention", metavar="LAYER.HEAD", repeat=True, help="show the weights of a head; repeatable")
    option(
        "--without",
        metavar="LAYER.HEAD",
        repeat=True,
        help="switch off a head, or LAYER.ffn, and show the answer that follows; repeatable: all of them together",
    )
    option = parser.group("answer")
    option("--max-tokens", metavar="N", type=positive, help="end the answer after N tokens (default 64)")
    sampling_options(option)
    option = common_options(parser, json="print one JSON object")
    option("--html", metavar="FILE", help="write a page that shows everything, in one file")
    option("--png", metavar="FILE", help="write a picture of --attention or the lens; needs the extra `plot`")
    option("--svg", metavar="FILE", help="the same as a vector graphic")
    return parser


def run(args: argparse.Namespace) -> int:
    parameters = {"seed": 0} | answer_parameters(args)
    if args.raw and args.system is not None and args.source["system"] == "--system":
        raise RequestError("--raw takes no system message: write it into the prompt, or leave out --raw")
    if args.png or args.svg:
        from llama3.inspect.figure import need_matplotlib

        need_matplotlib()
    for path in (args.html, args.png, args.svg):  # before the work
        if path is not None:
            check_output(path)
    prompt = read_prompt(args.words)
    system = [{"role": "system", "content": args.system}] if args.system is not None else []
    llama = load(args)
    from llama3.inspect.run import inspect
    from llama3.inspect.without import parse_part

    without = [parse_part(text, llama.config) for text in args.without or ()]
    heads = [parse_part(text, llama.config, feed_forward=False) for text in args.attention or ()]
    messages = prompt if args.raw else [*system, {"role": "user", "content": prompt}]
    seen = inspect(llama, messages, without, each=bool(args.html), **parameters)
    if args.html:
        from llama3.inspect.page import page

        write_output(args.html, page(seen, heads).encode(), args.quiet)
    for path in (args.png, args.svg):
        if path:
            from llama3.inspect.figure import draw

            write_output(path, draw(seen, heads, "png" if path is args.png else "svg"), args.quiet)
    if args.json:
        from llama3.inspect.as_json import as_dict

        print_json(as_dict(seen, heads))
    elif args.lens or not (args.html or args.png or args.svg):
        show(seen, args, heads)
    return 0


def show(seen: "Inspection", args: argparse.Namespace, heads: list) -> None:
    """Print the sections that were asked for, or a summary."""
    from llama3.inspect import summary

    sections = [summary.lens(seen)] if args.lens else []
    sections += [summary.attention(seen, head) for head in heads]
    sections += [summary.without(seen)] if args.without else []
    for i, (heading, lines) in enumerate(sections or summary.summary(seen)):
        print("\n" * (i > 0) + paint(heading, "1", sys.stdout))
        print("\n".join(lines).translate(VISIBLE))
