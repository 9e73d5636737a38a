"""`llama3 tokenize TEXT`: ids and pieces; and back."""

import argparse
import re
import sys
from typing import TYPE_CHECKING

from llama3.cli.options import Parser, common_options
from llama3.cli.terminal import is_terminal, note, paint, prepare_hub, print_json, read_stdin, show
from llama3.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    from llama3.tokenizer import Tokenizer

DESCRIPTION = """\
Show the tokens of a text: a line each, its id and its piece. \\xNN is a byte of a character that
is not whole. "-" as the text, or no text, means standard input, all of it.

  llama3 tokenize "What is RoPE?"
  llama3 tokenize --chat "What is RoPE?"      as the model gets it in a chat
  llama3 tokenize --decode 3923 374 12811"""
COLOURS = ("30;46", "30;43")  # black on cyan, black on yellow, in turn


def parser() -> Parser:
    parser = Parser("llama3 tokenize [OPTIONS] TEXT", DESCRIPTION)
    option = parser.group("text")
    option("--chat", help="put the chat template around it, as a user's message")
    option("--special", help="<|...|> names in the text are special tokens, not text")
    option("--decode", help="the other way: ids to text")
    common_options(parser, device=False, json="one JSON object: count, ids, and of each token id, text and bytes (hex)")
    return parser


def run(args: argparse.Namespace) -> int:
    if args.chat + args.special + args.decode > 1:
        raise RequestError("only one of --chat, --special and --decode makes sense at a time")
    given = " ".join(args.words)
    if not given and (sys.stdin is None or is_terminal(sys.stdin)):
        raise RequestError('there is no text; try: llama3 tokenize "What is RoPE?"')
    text = read_stdin() if given in ("", "-") else given
    tokenizer = load_tokenizer(args)
    if args.decode:
        ids = parse_ids(tokenizer, text)
        if not args.json:
            show(tokenizer.decode(ids) + "\n")
            return 0
    elif args.chat:
        from llama3.chat import encode_dialog

        ids = encode_dialog(tokenizer, [{"role": "user", "content": text}])
    else:
        ids = tokenizer.encode(text, allow_special=args.special)
    if args.json:
        tokens = [{"id": i, "text": tokenizer.decode([i]), "bytes": tokenizer.token_bytes(i).hex()} for i in ids]
        print_json({"count": len(ids), "ids": ids, "tokens": tokens})
        return 0
    show_table(tokenizer, ids)
    if not args.quiet:
        note(f"{len(ids)} token{'' if len(ids) == 1 else 's'}")
    return 0


def load_tokenizer(args: argparse.Namespace) -> "Tokenizer":
    prepare_hub(args.quiet)
    from llama3.checkpoint import load_folder, resolve

    checkpoint = load_folder(resolve(args.model))
    if checkpoint.tokenizer is None:
        raise RequestError(f"{checkpoint.path} has no tokenizer: neither tokenizer.model nor tokenizer.json")
    return checkpoint.tokenizer


def parse_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids between spaces or commas; a JSON list will do."""
    words = re.findall(r"[^\s,\[\]]+", text)
    wrong = [word for word in words if not (word.isascii() and word.isdigit())]
    if wrong:
        raise RequestError(f"{wrong[0]!r} is not a token id; expected whole numbers")
    ids = [int(word) for word in words]
    try:
        tokenizer.decode_bytes(ids)
    except TokenizerError as error:
        raise RequestError(str(error)) from None
    return ids


def show_table(tokenizer: "Tokenizer", ids: list[int]) -> None:
    special = set(tokenizer.special.values())
    pieces = [readable(tokenizer.token_bytes(i)) for i in ids]
    in_colours = [paint(piece, COLOURS[n % 2], sys.stdout) for n, piece in enumerate(pieces)]
    if pieces and in_colours != pieces:
        # The text as it stands, its tokens in turn in two colours; a line ends where the text's does.
        print("".join(c + "\n" * p.endswith("\\n") for p, c in zip(pieces, in_colours)) + "\n")
    for i, piece in zip(ids, pieces):
        print(f"{i:>7}  " + (paint(piece, "35", sys.stdout) if i in special else f'"{piece}"'))


def readable(piece: bytes) -> str:
    r"""Text as it is; \xNN for a byte of half a character, \n, \t, \u.... for what a screen would not show."""
    text = piece.replace(b"\\", b"\\\\").replace(b'"', b'\\"').decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else escape(c) for c in text)


def escape(c: str) -> str:
    """Of one character. \\xa0 would be half a character's byte, so U+00A0 is \\u00a0."""
    return f"\\u{ord(c):04x}" if 0x80 <= ord(c) <= 0xFF else c.encode("unicode_escape").decode()
