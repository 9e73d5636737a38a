"""Llama 3's real vocabulary, which Meta's package `llama-models` carries, and texts to try tokenizers on."""

from functools import cache
from importlib.resources import as_file, files

import regex
import tiktoken
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama3.tokenizer import Tokenizer

FILE = files("llama_models") / "llama3" / "tokenizer.model"
UNICODE = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)


@cache
def tokenizer(fast: bool) -> Tokenizer:
    with as_file(FILE) as path:
        return Tokenizer.from_file(path, fast=fast)


@cache
def meta() -> MetaTokenizer:
    """Meta's own, with Llama 3.1's special tokens."""
    return MetaTokenizer.get_instance()


def oracle() -> tiktoken.Encoding:
    """tiktoken, with the file read and the pattern written by Meta."""
    return meta().model


def tiktoken_finds(pattern: str, text: str = UNICODE) -> str:
    """What of the text matches: tiktoken throws away whatever its pattern doesn't match, and so is a way to ask Rust."""
    bytes_alone = {bytes([i]): i for i in range(256)}
    return bytes(tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=bytes_alone, special_tokens={}).encode_ordinary(text)).decode()


@cache
def young() -> frozenset[str]:
    """Characters that the Unicode tables of tiktoken and `regex` don't both know. They are split as each table says."""
    return frozenset(set(tiktoken_finds(r"\P{Cn}")) ^ set(regex.findall(r"\P{Cn}", UNICODE)))


PIECES = ["'s", "'LL", "'ſ", "'", " ", "  ", "\n", "\r\n", "\t", " \n", "\u3000", "\x85", "\x1c", "\u200b", "\u180e", "\ufeff"]
PIECES += ["a", "The", " the", "é", "e\u0301", "123", "7", "½", "Ⅷ", "!?", "...", "_", "Việt", " Việt", "例", "🦙", "👩‍🚀", "\0"]


def texts() -> st.SearchStrategy[str]:
    """Texts of any characters, and of pieces at which the split pattern has to decide."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters=young())
    keys = [chr(0xE000 + i) for i in range(len(PIECES))]  # one text of keys is drawn much faster than a list of pieces
    pieces = str.maketrans(dict(zip(keys, PIECES)))
    return st.text(characters) | st.text(keys).map(lambda text: text.translate(pieces))
