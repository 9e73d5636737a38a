"""Llama 3's real vocabulary, which comes with Meta's package `llama-models`, and texts for testing tokenizers."""

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import regex
import tiktoken
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama3.tokenizer import Tokenizer

UNICODE = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)

PIECES = ["'s", "'LL", "'ſ", "'", " ", "  ", "\n", "\r\n", "\t", " \n", "\u3000", "\x85", "\x1c", "\u200b", "\u180e"]
PIECES += [
    "a",
    "The",
    " the",
    "é",
    "e\u0301",
    "123",
    "7",
    "½",
    "Ⅷ",
    "!?",
    "...",
    "_",
    " Việt",
    "例",
    "🦙",
    "👩‍🚀",
    "\0",
    "\ufeff",
]


def file() -> Path:
    with as_file(files("llama_models") / "llama3" / "tokenizer.model") as path:
        return path


@cache
def tokenizer(fast: bool) -> Tokenizer:
    return Tokenizer.from_file(file(), fast=fast)


@cache
def meta() -> MetaTokenizer:
    """Meta's tokenizer, with Llama 3.1's special tokens. Its `.model` is tiktoken with the file as Meta reads it."""
    return MetaTokenizer.get_instance()


def tiktoken_finds(pattern: str, text: str = UNICODE) -> str:
    """The characters of the text that match. tiktoken drops all others, which shows what Rust's Unicode tables say."""
    encoding = tiktoken.Encoding(
        "", pat_str=pattern, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    return bytes(encoding.encode_ordinary(text)).decode()


@cache
def unicode_differences() -> str:
    """Characters that only one of tiktoken and `regex` knows, so that the two may split them differently."""
    return "".join(sorted(set(tiktoken_finds(r"\P{Cn}")) ^ set(regex.findall(r"\P{Cn}", UNICODE))))


def texts() -> st.SearchStrategy[str]:
    """Texts of any characters, and texts of PIECES, at which the split pattern takes different branches."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters=unicode_differences())
    # Drawing one text of keys is much faster than drawing a list of pieces.
    keys = [chr(0xE000 + i) for i in range(len(PIECES))]
    pieces = str.maketrans(dict(zip(keys, PIECES)))
    return st.text(characters) | st.text(keys).map(lambda text: text.translate(pieces))
