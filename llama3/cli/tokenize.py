"""`llama3 tokenize TEXT`: show a text as token ids and pieces, or turn ids back into text."""

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
Show the tokens of a text, one per line: the id and the piece of text. A token may hold only
some bytes of a character; these are shown as \\xNN. With "-" or no text, the text is all of
standard input.

  llama3 tokenize "What is RoPE?"
  llama3 tokenize --chat "What is RoPE?"      as the model sees it in a chat
  llama3 tokenize --decode 3923 374 12811"""
COLOURS = ("30;46", "30;43")  # black on cyan and black on yellow, alternating


def parser() -> Parser:
    parser = Parser("llama3 tokenize [OPTIONS] TEXT", DESCRIPTION)
    option = parser.group("text")
    option("--chat", help="put the text into the chat template, as a user's message")
    option("--special", help="read names like <|eot_id|> in the text as special tokens")
    option("--decode", help="turn ids into text")
    common_options(
        parser, device=False, json="print one JSON object: count, ids, and the id, text and bytes (hex) of each token"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    if args.chat + args.special + args.decode > 1:
        raise RequestError("only one of --chat, --special and --decode may be given")
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
    """The tokenizer of --model. Raises RequestError if the checkpoint has none."""
    prepare_hub(args.quiet)
    from llama3.checkpoint import load_folder, resolve

    checkpoint = load_folder(resolve(args.model))
    if checkpoint.tokenizer is None:
        raise RequestError(f"{checkpoint.path} has no tokenizer: neither tokenizer.model nor tokenizer.json")
    return checkpoint.tokenizer


def parse_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Read ids that are separated by spaces or commas; a JSON list is accepted too. Raises RequestError."""
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
    """Print the tokens one per line; on a terminal with colours, first print the text with its tokens coloured."""
    special = set(tokenizer.special.values())
    pieces = [readable(tokenizer.token_bytes(i)) for i in ids]
    in_colours = [paint(piece, COLOURS[n % 2], sys.stdout) for n, piece in enumerate(pieces)]
    if pieces and in_colours != pieces:
        # A piece that ends in a newline, which `readable` has escaped, also ends the line on the screen.
        print("".join(c + "\n" * p.endswith("\\n") for p, c in zip(pieces, in_colours)) + "\n")
    for i, piece in zip(ids, pieces):
        print(f"{i:>7}  " + (paint(piece, "35", sys.stdout) if i in special else f'"{piece}"'))


def readable(piece: bytes) -> str:
    r"""A token's bytes as printable text: \xNN for a byte of an incomplete character; \n, \t or \uNNNN otherwise."""
    text = piece.replace(b"\\", b"\\\\").replace(b'"', b'\\"').decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else escape(c) for c in text)


def escape(c: str) -> str:
    """Escape one character. U+00A0 becomes \\u00a0, since \\xa0 stands for a byte of an incomplete character."""
    return f"\\u{ord(c):04x}" if 0x80 <= ord(c) <= 0xFF else c.encode("unicode_escape").decode()
