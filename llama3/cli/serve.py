"""`llama3 serve`: answer requests over HTTP."""

import argparse
import os
import re
from dataclasses import asdict

from llama3.cli.loading import adapters, load
from llama3.cli.options import Parser, common_options, lora_option, positive, ray_options, whole_number
from llama3.cli.terminal import note
from llama3.errors import RequestError
from llama3.limits import LIMITS, Limits

DESCRIPTION = """\
Answer over HTTP as Cloudflare Workers AI does for @hf/meta-llama/meta-llama-3-8b-instruct:

  curl http://127.0.0.1:8000/client/v4/accounts/me/ai/run/@hf/meta-llama/meta-llama-3-8b-instruct \\
    -d '{"prompt": "What is RoPE?"}'

OpenAI's routes are under http://127.0.0.1:8000/v1, and http://127.0.0.1:8000/ is a page to
chat on. Without --token, only this machine can connect. Ctrl-C or SIGTERM stops the server.
--ray serves copies of the model on many machines (extra ray; docs/ray.md)."""


MAX_TOKEN = 4096  # characters
LIMIT_NAMES = ", ".join(f"{name} ({most:,})" for name, most in asdict(Limits()).items())


def limit(text: str) -> tuple[str, int]:
    """Convert NAME=N for argparse."""
    name, _, most = text.partition("=")
    if name not in asdict(LIMITS) or not (re.fullmatch(r"[0-9]{1,9}", most) and int(most)):
        names = ", ".join(asdict(LIMITS))
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; expected NAME=N, where NAME is one of {names}")
    return name, int(most)


def host(name: str) -> str:
    """Check a host name for argparse -> as `auth.host_name` returns it."""
    from llama3.server.names import host_name

    bare = f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name
    found = host_name(bare)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name!r} is no host name; expected one such as llm.example.com")
    return found


def origin(address: str) -> str:
    """Check an origin for argparse -> as browsers write it."""
    from llama3.server.names import origin_of

    found = origin_of(address)
    if found is None:
        raise argparse.ArgumentTypeError(f"{address!r} is no origin; expected one such as https://a.example")
    return found


def token_of(args: argparse.Namespace) -> str | None:
    """The token of --token, --token-file or LLAMA3_TOKEN, without the white space around it; None if none is set.

    Raises RequestError for one that no header can carry.
    """
    option, token = "token", args.token
    by_flag = {name: not args.source[name].startswith("LLAMA3_") for name in ("token", "token_file")}
    if token is not None and args.token_file is not None and by_flag["token"] == by_flag["token_file"]:
        raise RequestError(f"{args.source['token']} and {args.source['token_file']} are both set; expected one of them")
    if args.token_file is not None and (token is None or by_flag["token_file"]):
        option = "token_file"
        try:
            with open(args.token_file, encoding="ascii", errors="replace") as file:
                token = file.read(MAX_TOKEN + 1)
        except OSError as error:
            raise RequestError(f"{args.source[option]}: {args.token_file}: {error.strerror}") from None
    if token is None:
        return None
    name, token = args.source[option], token.strip()
    if not token:
        raise RequestError(f"{name} is empty; expected a token, or leave it out")
    if not re.fullmatch(r"[!-~]+", token) or len(token) > MAX_TOKEN:
        raise RequestError(f"{name} is no token; expected at most {MAX_TOKEN} visible ASCII characters, without spaces")
    return token


def parser() -> Parser:
    parser = Parser("llama3 serve [OPTIONS]", DESCRIPTION)
    option = parser.group("server")
    option("--host", metavar="HOST", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    option("--port", metavar="PORT", type=whole_number, default=8000, help="port to listen on (default 8000)")
    option(
        "--token",
        metavar="TOKEN",
        help="require the header Authorization: Bearer TOKEN, except for /health and the files of the page. The "
        "list of processes shows it to all users of this machine; --token-file and LLAMA3_TOKEN do not",
    )
    option("--token-file", metavar="FILE", help="read the token from FILE; white space around it does not count")
    option(
        "--allow-host",
        metavar="NAME",
        repeat=True,
        type=host,
        help="accept this host name in requests, as well as this machine's own; repeatable",
    )
    option(
        "--allow-origin",
        metavar="ORIGIN",
        repeat=True,
        type=origin,
        help="let web pages of this origin, such as https://a.example, call the server (CORS); repeatable",
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
        help=f"change a limit; repeatable. The defaults: {LIMIT_NAMES}",
    )
    option("--parsed-json", help="in JSON mode, answer with the parsed object instead of its text")
    lora_option(option)
    ray_options(option, "serve")
    common_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    if args.words:
        raise RequestError(f"serve takes no prompt ({' '.join(args.words)!r}): prompts come with the requests")
    if not 0 < args.port < 65536:
        raise RequestError(f"--port: {args.port} is no port; expected 1 to 65535")
    if args.replicas is not None and args.ray is None:
        raise RequestError(f"{args.source['replicas']} is the number of copies on a Ray cluster; expected --ray, too")
    token = token_of(args)
    if args.ray is not None:
        return run_on_ray(args, token)
    try:
        from llama3.server.main import Settings, serve
    except ImportError as error:
        raise RequestError(
            f"llama3 serve needs the extra server ({error.name} is missing): pip install 'llama3[server]'"
        ) from None
    if not args.quiet:
        name = f"[{args.host}]" if ":" in args.host else args.host
        note(f"http://{name}:{args.port} (process {os.getpid()}); Ctrl-C stops it")
    for name, most in args.limit or ():
        setattr(LIMITS, name, most)
    settings = Settings(
        host=args.host,
        port=args.port,
        token=token,
        slots=args.slots,
        queue=args.queue,
        allowed_hosts=tuple(args.allow_host or ()),
        allowed_origins=tuple(args.allow_origin or ()),
        quiet=args.quiet,
        parsed_json=args.parsed_json,
    )
    serve(lambda: load(args), settings)
    return 0


def run_on_ray(args: argparse.Namespace, token: str | None) -> int:
    """Serve copies of the model on a Ray cluster until a signal comes."""
    try:
        from llama3.ray.serve_command import serve
        from llama3.ray.settings import Settings
    except ImportError as error:
        raise RequestError(
            f"llama3 serve --ray needs the extra ray ({error.name} is missing): pip install 'llama3[ray]'"
        ) from None
    settings = Settings(
        model=args.model,
        device=args.device,
        linear=args.linear,
        activations=args.activations,
        lora=adapters(args),
        replicas=args.replicas or 0,
        slots=args.slots,
        queue=args.queue,
        token=token,
        allow_host=tuple(args.allow_host or ()),
        allow_origin=tuple(args.allow_origin or ()),
        limit=dict(args.limit or ()),
        parsed_json=args.parsed_json,
        quiet=args.quiet,
    )
    name = f"[{args.host}]" if ":" in args.host else args.host

    def ready(replicas: int) -> None:
        if not args.quiet:
            copies = f"{replicas} replica{'s' * (replicas != 1)}"
            note(f"http://{name}:{args.port} ({copies} on Ray, process {os.getpid()}); Ctrl-C stops it")

    serve(settings, args.host, args.port, args.ray, ready)
    return 0
