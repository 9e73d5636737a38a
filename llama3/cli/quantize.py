"""`llama3 quantize FOLDER --to FOLDER`: write a checkpoint with 8 or 4 bits a weight."""

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path

from llama3.cli.options import Parser, output_options, whole_number
from llama3.cli.terminal import in_bytes, note, prepare_hub, progress
from llama3.errors import RequestError

DESCRIPTION = """\
Write a checkpoint with 8 or 4 bits a weight instead of 16: half of the memory, or about a third. MODEL is
a folder in Hugging Face's form, or a name on the hub. The new folder is in the form of compressed-tensors,
which transformers reads, too. docs/quantize.md says what it costs. If the command is interrupted, give it
again. Only the folder's path goes to standard output.

  llama3 quantize weights/8b --to weights/8b-8bit
  llama3 quantize weights/8b --to weights/8b-4bit --bits 4"""


def parser() -> Parser:
    parser = Parser("llama3 quantize MODEL --to FOLDER [OPTIONS]", DESCRIPTION)
    option = parser.group("quantize")
    option("--to", metavar="FOLDER", help="the folder to write; it must not exist, or be empty")
    option("--bits", metavar="N", type=whole_number, default=8, help="8 (default) or 4 bits a weight")
    output_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if len(args.words) != 1:
        raise RequestError(
            f"quantize takes one model, and found {len(args.words)} words: llama3 quantize MODEL --to FOLDER"
        )
    if not args.to:
        raise RequestError("quantize needs the folder to write: --to FOLDER")
    if args.bits not in (8, 4):
        raise RequestError(f"{args.source['bits']} is {args.bits}; expected 8 or 4")
    prepare_hub(args.quiet)
    from llama3.checkpoint import resolve
    from llama3.quantize import quantize

    source = resolve(args.words[0])
    with ExitStack() as stack:
        show = None

        def on_progress(done: int, total: int) -> None:
            nonlocal show
            show = show or stack.enter_context(progress("quantising", total, "B", args.quiet))
            show(done)

        folder = quantize(source, args.to, args.bits, on_progress)
    print(folder)
    if not args.quiet:
        before, after = (sum(file.stat().st_size for file in Path(f).glob("*.safetensors")) for f in (source, folder))
        note(f"{in_bytes(before)} before, {in_bytes(after)} now")
        note(f'run it: llama3 --model {shlex.quote(args.to)} "What is RoPE?"')
    return 0
