"""`llama3 compare FILE`: are a model's logits those of the reference file? The measuring is in `llama3/parity/`."""

import argparse

from llama3.cli.options import Parser, common_options, number
from llama3.cli.terminal import prepare_hub, print_json
from llama3.errors import RequestError

DESCRIPTION = """\
Run a reference file's tokens through a model, and compare logits and activations; or compare
another reference file with it. docs/parity.md describes the files. Exit code 3: a limit is broken.

  llama3 compare reference.safetensors --model FOLDER
  llama3 compare reference.safetensors other.safetensors"""


def parser() -> Parser:
    parser = Parser("llama3 compare FILE [OTHER] [OPTIONS]", DESCRIPTION)
    option = parser.group("limits")
    option(
        "--rtol",
        metavar="X",
        type=number,
        help="relative error of every row (default by the file's dtype; float32: 1e-5)",
    )
    option("--max-kl", metavar="X", type=number, help="KL divergence at every position, in nats (default: no limit)")
    option(
        "--min-top1", metavar="X", type=number, help="share of positions with the same likeliest token (default: none)"
    )
    common_options(parser, json="the whole report as one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    if len(args.words) not in (1, 2):
        raise RequestError("compare takes a reference file, and perhaps another one: llama3 compare FILE [OTHER]")
    prepare_hub(args.quiet)
    from llama3.parity import Limits, compare_files, compare_model, read_reference

    limits = {name: getattr(args, name) for name in ("rtol", "max_kl", "min_top1")}
    Limits(**limits)  # raises before a model is loaded
    reference = read_reference(args.words[0])
    if len(args.words) == 2:
        report = compare_files(args.words[1], reference, **limits)
    else:
        from llama3.llama import Llama

        report = compare_model(Llama.load(args.model, device=args.device).model, reference, **limits)
    if args.json:
        print_json(report.as_dict())
    else:
        print(report)
    return 0 if report.ok else 3
