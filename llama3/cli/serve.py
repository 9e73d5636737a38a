"""`llama3 serve`: answer requests over HTTP."""

import argparse
import os
import re
from dataclasses import asdict

from llama3.cli.loading import load
from llama3.cli.options import Parser, adapter, common_options, positive, whole_number
from llama3.cli.terminal import note
from llama3.errors import RequestError
from llama3.limits import LIMITS, Limits

DESCRIPTION = """\
Answer over HTTP as Cloudflare Workers AI does for @hf/meta-llama/meta-llama-3-8b-instruct:

  curl http://127.0.0.1:8000/client/v4/accounts/me/ai/run/@hf/meta-llama/meta-llama-3-8b-instruct \\
    -d '{"prompt": "What is RoPE?"}'

OpenAI's routes are under http://127.0.0.1:8000/v1, and http://127.0.0.1:8000/ is a page to
chat on. Without --token, only this machine can connect. Ctrl-C or SIGTERM stops the server."""


LIMIT_NAMES = ", ".join(f"{name} ({most:,})" for name, most in asdict(Limits()).items())


def limit(text: str) -> tuple[str, int]:
    """Convert NAME=N for argparse."""
    name, _, most = text.partition("=")
    if name not in asdict(LIMITS) or not (re.fullmatch(r"[0-9]{1,9}", most) and int(most)):
        names = ", ".join(asdict(LIMITS))
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; expected NAME=N, where NAME is one of {names}")
    return name, int(most)


def parser() -> Parser:
    parser = Parser("llama3 serve [OPTIONS]", DESCRIPTION)
    option = parser.group("server")
    option("--host", metavar="HOST", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    option("--port", metavar="PORT", type=whole_number, default=8000, help="port to listen on (default 8000)")
    option(
        "--token",
        metavar="TOKEN",
        help="require the header Authorization: Bearer TOKEN, except for /health and the files of the page",
    )
    option(
        "--allow-host",
        metavar="NAME",
        repeat=True,
        help="accept this host name in requests, as well as this machine's own; repeatable",
    )
    option("--slots", metavar="N", type=positive, default=4, help="requests that run at once, in one batch (default 4)")
    option(
        "--queue",
        metavar="N",
        type=positive,
        default=32,
        help="requests that may wait for a slot (default 32); more get status 429",
    )
    option(
        "--limit",
        metavar="NAME=N",
        type=limit,
        repeat=True,
        help=f"change a limit of requests; repeatable. The defaults: {LIMIT_NAMES}",
    )
    option("--parsed-json", help="in JSON mode, answer with the parsed object instead of its text")
    option(
        "--lora",
        metavar="NAME=FOLDER",
        type=adapter,
        repeat=True,
        help="load a LoRA adapter that requests may name; repeatable",
    )
    common_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if args.words:
        raise RequestError(f"serve takes no prompt ({' '.join(args.words)!r}): prompts come with the requests")
    if not 0 < args.port < 65536:
        raise RequestError(f"--port: {args.port} is no port; expected 1 to 65535")
    try:
        from llama3.server.main import Settings, serve
    except ImportError as error:
        raise RequestError(
            f"llama3 serve needs the extra server ({error.name} is missing): pip install 'llama3[server]'"
        ) from None
    if not args.quiet:
        note(f"http://{args.host}:{args.port} (process {os.getpid()}); Ctrl-C stops it")
    for name, most in args.limit or ():
        setattr(LIMITS, name, most)
    settings = Settings(
        host=args.host,
        port=args.port,
        token=args.token,
        slots=args.slots,
        queue=args.queue,
        allowed_hosts=tuple(args.allow_host or ()),
        quiet=args.quiet,
        parsed_json=args.parsed_json,
    )
    serve(lambda: load(args), settings)
    return 0
