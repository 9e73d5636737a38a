"""The command line: find the command, run it, and report an error in one line.

Other modules are imported inside functions. `--help` is then quick, since it does not load NumPy, and `main` handles
Ctrl-C even while modules are being imported.
"""

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command -> its exit code. Never raises.

    argv: the arguments; None means those of this process, which must then exit: from here on it ignores Ctrl-C.
    """
    try:
        try:
            code = dispatch(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return code
        except BaseException as error:
            return explain(error)
    except KeyboardInterrupt:  # Ctrl-C again, while the first one was being handled
        return 130
    finally:
        if argv is None:
            import signal

            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own shutdown would answer Ctrl-C with a traceback


def dispatch(argv: list[str]) -> int:
    """Run the command that `argv` names, or else `generate`.

    Each command is a module of this package with two functions, `parser()` and `run(args)`.
    """
    prepare_streams()
    from importlib import import_module

    from llama3.cli.help import COMMANDS, everything, opening
    from llama3.cli.terminal import is_terminal
    from llama3.errors import RequestError

    if argv == ["--version"]:
        from llama3 import __version__

        print(f"llama3 {__version__}")
        return 0
    named = bool(argv) and argv[0] in COMMANDS
    command = import_module(f"llama3.cli.{argv[0] if named else 'generate'}")
    parser = command.parser()
    if argv in (["--help"], ["-h"], ["help"]):
        print(everything(parser.format_options()))
        return 0
    args = parser.read(argv[1:] if named else argv)
    if not named and len(args.words) == 1 and args.words[0] in COMMANDS and "--" not in argv:
        word = args.words[0]
        raise RequestError(f"a command comes first: llama3 {word} ...; if {word!r} is the prompt: llama3 -- {word}")
    if not named and not args.words and is_terminal(sys.stdin):
        print(opening() + "\n\nllama3 --help lists the options.", file=sys.stderr)
        return 2
    code: int = command.run(args)
    return code


def prepare_streams() -> None:
    """Replace closed streams, and escape characters that the terminal's encoding lacks: writing must never fail."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def explain(error: BaseException) -> int:
    """Report an error on standard error -> the exit code (`help.py` lists the codes)."""
    import contextlib

    from llama3.errors import DownloadError, Llama3Error, RequestError

    if os.environ.get("LLAMA3_DEBUG") and not isinstance(error, SystemExit):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, SystemExit):  # raised by argparse after --help
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        forget_output()
        return 141
    if isinstance(error, DownloadError):
        message = str(error)  # two lines if a licence must be accepted first
    elif isinstance(error, Llama3Error):
        message = str(error).replace("\n", "\\n")
    elif isinstance(error, ImportError):
        message = f"{error}; a dependency is missing: run `pip install .` in the folder of llama3's source"
    elif isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        message = f"out of memory{detail}; try a shorter prompt or a smaller model"
    elif isinstance(error, OSError):
        message = f"{error.filename or 'input or output'}: {error.strerror}" if error.strerror else str(error)
        forget_output()
    else:
        message = (
            f"this is a bug: {type(error).__name__}: {' '.join(str(error).split())} (LLAMA3_DEBUG=1 shows a traceback)"
        )
    with contextlib.suppress(OSError):
        shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
        print(f"llama3: {shown}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, RequestError) else 1


def forget_output() -> None:
    """Drop buffered output that cannot be written. Otherwise Python would try to write it again at exit, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
