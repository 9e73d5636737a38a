"""`llama3 compare FILE`: compare a model's logits with those of a reference file. `llama3/parity/` does the work."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from llama3.cli.options import Parser, common_options, number
from llama3.cli.terminal import check_output, prepare_hub, print_json, write_output
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.checkpoint import Checkpoint
    from llama3.llama import Llama
    from llama3.parity import Report
    from llama3.parity.compact import CompactReport

DESCRIPTION = """\
Run the tokens of a reference file through a model, and compare logits and activations. With a
second file, compare the two files instead. docs/parity.md describes the files. The exit code is
3 if a limit is exceeded. With --explain, the report names the fault that makes the difference
(docs/faults.md): FILE then holds right numbers and OTHER those of another implementation of --model.
Without OTHER, the numbers in FILE are explained.

  llama3 compare reference.safetensors --model FOLDER
  llama3 compare reference.safetensors other.safetensors
  llama3 compare reference.safetensors other.safetensors --explain --model FOLDER"""


def parser() -> Parser:
    parser = Parser("llama3 compare FILE [OTHER] [OPTIONS]", DESCRIPTION)
    option = parser.group("limits")
    option(
        "--rtol",
        metavar="X",
        type=number,
        help="largest relative error of any row (default: by the file's dtype; 1e-5 for float32)",
    )
    option(
        "--max-kl", metavar="X", type=number, help="largest KL divergence at any position, in nats (default: no limit)"
    )
    option(
        "--min-top1",
        metavar="X",
        type=number,
        help="smallest share of positions that agree on the most likely token, 0 to 1 (default: no limit)",
    )
    option = parser.group("fault")
    option("--explain", help="name the fault: compute the model with each known fault, and see which gives the numbers")
    option(
        "--rope-angles",
        metavar="DTYPE",
        default="float64",
        help="float64 (default), or float32: the model rotates by angles rounded as transformers rounds them",
    )
    output = common_options(parser, json="print the whole report as one JSON object")
    output("--html", metavar="FILE", help="also write the report with plots as one HTML page")
    return parser


def run(args: argparse.Namespace) -> int:
    if len(args.words) not in (1, 2):
        raise RequestError("compare takes a reference file, and optionally another one: llama3 compare FILE [OTHER]")
    if args.rope_angles not in ("float64", "float32"):
        raise RequestError(f"{args.source['rope_angles']} is {args.rope_angles!r}; expected float64 or float32")
    if args.rope_angles == "float32" and len(args.words) == 2:
        raise RequestError(
            f"{args.source['rope_angles']} is for a model's own logits; {args.words[0]} is compared with a file"
        )
    if args.html is not None:
        check_output(args.html)
    prepare_hub(args.quiet)
    from llama3.parity import Limits
    from llama3.parity.compact import is_compact

    limits = {name: getattr(args, name) for name in ("rtol", "max_kl", "min_top1")}
    Limits(**limits)  # raises RequestError for a bad limit, before a model is loaded
    report = compare_with_compact(args, limits) if is_compact(args.words[0]) else compare(args, limits)
    if args.html:
        from llama3.parity.report_html import page

        write_output(args.html, page(report).encode(), args.quiet)
    if args.json:
        print_json(report.as_dict())
    else:
        print(report)
    return 0 if report.ok else 3


def compare(args: argparse.Namespace, limits: dict[str, float | None]) -> "Report":
    """Compare a model, or a second file, with a reference file."""
    from llama3.parity import compare_files, compare_model, explained, read_reference
    from llama3.parity.compact import is_compact

    reference = read_reference(args.words[0])
    if len(args.words) == 2:
        if is_compact(args.words[1]):
            raise RequestError(f"{args.words[1]} is a compact reference; it comes first: llama3 compare COMPACT OTHER")
        ours = read_reference(args.words[1])
        report = compare_files(ours, reference, **limits)
        if args.explain:
            from llama3.checkpoint import load_folder, resolve

            checkpoint = load_folder(resolve(args.model))
    else:
        llama = load_model(args)
        ours, checkpoint = reference, llama.checkpoint
        report = replace(compare_model(llama.model, reference, **limits), quantised=describe_weights(checkpoint))
    if args.explain:
        bos = checkpoint.tokenizer.bos_id if checkpoint.tokenizer else None
        report = explained(report, ours, checkpoint.config, checkpoint.weights, bos)
    return report


def compare_with_compact(args: argparse.Namespace, limits: dict[str, float | None]) -> "CompactReport":
    """The same with a compact reference (`llama3 reference --compact`)."""
    from llama3.parity import read_reference
    from llama3.parity.compact import compare_file_compact, compare_model_compact, is_compact, read_compact
    from llama3.parity.weights_hash import weights_hash

    if args.explain:
        raise RequestError(f"--explain needs all logits; {args.words[0]} is a compact reference, which has the highest")
    compact = read_compact(args.words[0])
    if len(args.words) == 2:
        if is_compact(args.words[1]):
            raise RequestError(f"{args.words[1]} is a compact reference, too; expected a file with all logits")
        return compare_file_compact(read_reference(args.words[1]), compact, **limits)
    llama = load_model(args)
    hashes = weights_hash(llama.checkpoint.weights)
    report = compare_model_compact(llama.model, compact, weights=hashes, **limits)
    return replace(report, quantised=describe_weights(llama.checkpoint))


def describe_weights(checkpoint: "Checkpoint") -> str | None:
    """How the weights are quantised; None if they are not."""
    return None if checkpoint.scheme is None else checkpoint.scheme.description


def load_model(args: argparse.Namespace) -> "Llama":
    """The model that the options name."""
    from llama3.llama import Llama

    cpu = {"linear": args.linear, "activations": args.activations, "rope_angles": args.rope_angles}
    return Llama.load(args.model, device=args.device, **cpu)
