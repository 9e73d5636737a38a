"""`llama3 reference FILE`: write what a model computes, for other implementations to compare with."""

import argparse
from typing import TYPE_CHECKING

from llama3.cli.options import Parser, common_options
from llama3.cli.terminal import check_output, note, prepare_hub
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.checkpoint import Checkpoint
    from llama3.parity import Reference

DESCRIPTION = """\
Write a reference file: the tokens of a text, and the logits and any intermediate values that a
model computes for them. docs/parity.md describes the file; llama3 compare takes it.

  llama3 reference out.safetensors --prompt "Once upon" --activations "layers.*"
  llama3 reference out.safetensors --from transformers --dtype bfloat16 --tokens "9906 1917"
  llama3 reference small.safetensors --compact --prompt "Once upon"     a few KB"""
ATTENTION = ("sdpa", "eager")  # rounding.py has the same, but would load NumPy for --help
SOURCES = {"llama3": ("float64", "float32", "bfloat16"), "transformers": ("float32", "float16", "bfloat16")}


def parser() -> Parser:
    parser = Parser("llama3 reference FILE [OPTIONS]", DESCRIPTION)
    option = parser.group("reference")
    option("--prompt", metavar="TEXT", help="the text; <|begin_of_text|> is put first")
    option("--tokens", metavar="IDS", help='token ids instead of a text, as they are: "128000 9906 1917"')
    option("--from", metavar="NAME", default="llama3", help="what computes: llama3 (default), or transformers")
    option(
        "--dtype",
        metavar="DTYPE",
        help="llama3: float64 (default: plain.py), float32 (the fast model), or bfloat16 (each result rounded, as "
        "transformers does); transformers: float32 (default), float16 or bfloat16",
    )
    option(
        "--attn-implementation",
        metavar="NAME",
        help="how transformers computes attention: sdpa (its default), or eager (default with --activations); with "
        "--from llama3, what --dtype bfloat16 follows",
    )
    option(
        "--activations",
        metavar="NAMES",
        help='intermediate values to keep, by name, separated by commas: "layers.*,layers.0.q_rope"; * is one part of '
        "a name, ** is anything",
    )
    option("--compact", help="keep only the 64 highest logits and the log of the sum, at each position")
    common_options(parser, device=False)
    return parser


def run(args: argparse.Namespace) -> int:
    check(args)
    prepare_hub(args.quiet)
    from llama3.checkpoint import load_folder, resolve
    from llama3.parity import save_reference
    from llama3.parity.compact import compact_of, save_compact

    checkpoint = load_folder(resolve(args.model))
    tokens = numbers(args.tokens) if args.tokens is not None else encoded(checkpoint, args.prompt)
    reference = made(args, checkpoint, tokens)
    (path,) = args.words
    if args.compact:
        save_compact(path, compact_of(reference))
    else:
        save_reference(path, reference)
    if not args.quiet:
        what = (
            f"{len(tokens)} tokens, {len(reference.activations)} activations, {reference.dtype}, {reference.producer}"
        )
        note(f"{path}: {what}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises RequestError for options that do not fit together, before a model is loaded."""
    if len(args.words) != 1:
        raise RequestError(
            f"reference takes the file to write, and found {len(args.words)} words: llama3 reference FILE"
        )
    if (args.prompt is None) == (args.tokens is None):
        raise RequestError('expected one of --prompt TEXT and --tokens "ID ID ..."')
    source = getattr(args, "from")
    if source not in SOURCES:
        raise RequestError(f"--from is {source!r}; expected {' or '.join(SOURCES)}")
    if args.dtype is not None and args.dtype not in SOURCES[source]:
        raise RequestError(f"--dtype is {args.dtype!r}; with --from {source}, expected {', '.join(SOURCES[source])}")
    if args.attn_implementation not in (None, *ATTENTION):
        raise RequestError(f"--attn-implementation is {args.attn_implementation!r}; expected {' or '.join(ATTENTION)}")
    if args.compact and args.activations:
        raise RequestError("--compact keeps no activations; expected --compact or --activations")
    check_output(args.words[0])


def made(args: argparse.Namespace, checkpoint: "Checkpoint", tokens: list[int]) -> "Reference":
    """The reference that the options describe."""
    source = getattr(args, "from")
    names = [name.strip() for name in (args.activations or "").split(",") if name.strip()]
    dtype = args.dtype or SOURCES[source][0]
    attention = args.attn_implementation or ("eager" if names else "sdpa")
    if source == "llama3":
        from llama3.parity.own_reference import own_reference

        return own_reference(checkpoint, tokens, dtype, names, attention)
    try:
        from llama3.parity.write_reference import from_folder
    except ImportError as error:
        raise RequestError(f"--from transformers: {error}; pip install torch transformers") from error
    return from_folder(checkpoint, tokens, dtype, names, attention)


def encoded(checkpoint: "Checkpoint", text: str) -> list[int]:
    if (tokenizer := checkpoint.tokenizer) is None:
        raise RequestError(f"{checkpoint.path} has no tokenizer; give token ids instead: --tokens")
    ids = tokenizer.encode(text, allow_special=True)
    return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


def numbers(text: str) -> list[int]:
    """The ids of --tokens, separated by spaces or commas."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise RequestError(f'--tokens is {text[:40]!r}; expected token ids such as "128000 9906 1917"')
    return [int(word) for word in words]
