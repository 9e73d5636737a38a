"""`llama3 download OWNER/NAME`: fetch a checkpoint, and show how to run it."""

import argparse
import shlex

from llama3.cli.options import Parser, output_options
from llama3.cli.terminal import note, prepare_hub
from llama3.errors import RequestError

DESCRIPTION = """\
Fetch a checkpoint from the Hugging Face hub, into the hub's cache or into a folder. To resume
an interrupted download, give the same command again. Only the folder's path goes to standard
output.

  llama3 download meta-llama/Meta-Llama-3-8B-Instruct
  llama3 download meta-llama/Meta-Llama-3-8B-Instruct --to weights/8b

For Meta's models, first accept the licence on the model's page at huggingface.co, then put an
access token of your account into the variable HF_TOKEN."""


def parser() -> Parser:
    parser = Parser("llama3 download OWNER/NAME [OPTIONS]", DESCRIPTION)
    option = parser.group("download")
    option("--to", metavar="FOLDER", help="the folder to put it into, such as weights/NAME (default: the hub's cache)")
    option("--revision", metavar="NAME", help="a branch, a tag or a commit (default main)")
    output_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if len(args.words) != 1:
        raise RequestError("download takes one name, such as: llama3 download meta-llama/Meta-Llama-3-8B-Instruct")
    prepare_hub(args.quiet)
    from llama3.checkpoint import download

    repo = args.words[0]
    folder = download(repo, to=args.to, revision=args.revision)
    print(folder)
    if not args.quiet:
        model = args.to or (folder if args.revision else repo)  # --model OWNER/NAME would load the main revision
        note(f'run it: llama3 --model {shlex.quote(str(model))} "What is RoPE?"')
    return 0
