"""The tokenizer: text to token ids and back, special tokens, and decoding of a stream of tokens."""

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

from llama3.byte_pair import PATTERN, merge, split
from llama3.errors import RequestError, TokenizerError
from llama3.tokenizer_file import LLAMA3_SPECIAL, read_tiktoken, read_tokenizer_json

BOS = "<|begin_of_text|>"
STOPS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")  # end of text, of turn, of message; Llama 3.0 lacks the last

LONGEST_SPACE = 100_000  # tiktoken 0.14 panics on a million characters of white space: it backtracks through them
CACHED_CHUNK = 64  # bytes; longer chunks are seldom repeated


class Tokenizer:
    """Byte-level BPE with special tokens. `fast` encodes with tiktoken; otherwise `byte_pair.py` finds the same ids."""

    def __init__(
        self, ranks: dict[bytes, int], special: dict[str, int], *, whole_chunks: bool = True, fast: bool = True
    ) -> None:
        """`ranks`: each token's bytes -> its id, 0 to n - 1. `special`: each special token's text -> its id, n or more.

        `whole_chunks`: a chunk that is a token becomes that token, even if merges would not lead to it. That is so for
        588 tokens of Llama 3, such as " Việt" (101798). Raises TokenizerError if the ids have gaps or clash, or if a
        byte has no token.
        """
        _check_ids(ranks, special)
        self.ranks = ranks
        self.special = special
        self.whole_chunks = whole_chunks
        self.fast = fast
        self.vocab_size = max([*ranks.values(), *special.values()]) + 1  # the largest id + 1
        self.stop_ids = frozenset(special[name] for name in STOPS if name in special)
        self._bytes = {token: text for text, token in ranks.items()}
        self._bytes |= {token: name.encode() for name, token in special.items()}
        longest_first = sorted(special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._encode_short_chunk = lru_cache(maxsize=1 << 16)(self._encode_chunk)

    @classmethod
    def from_file(cls, path: str | Path, special: Sequence[str] = LLAMA3_SPECIAL, *, fast: bool = True) -> Self:
        """Read a vocabulary: Hugging Face's format if the name ends in .json, otherwise Meta's `tokenizer.model`.

        `special`: the names of the special tokens in the order of their ids, by default Llama 3's (LLAMA3_1_SPECIAL has
        Llama 3.1's). A .json file holds its own names, so `special` is ignored. Raises TokenizerError with the file's
        name.
        """
        try:
            data = Path(path).read_bytes()
            is_json = Path(path).suffix == ".json"
            vocabulary = read_tokenizer_json(data) if is_json else read_tiktoken(data, special)
            return cls(vocabulary.ranks, vocabulary.special, whole_chunks=vocabulary.whole_chunks, fast=fast)
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    @property
    def bos_id(self) -> int:
        """The id of <|begin_of_text|>."""
        return self.special_id(BOS)

    def special_id(self, name: str) -> int:
        """The id of a special token. Raises TokenizerError if this vocabulary has no token of that name."""
        if name not in self.special:
            raise TokenizerError(f"this vocabulary has no special token {name}; Llama 3's has")
        return self.special[name]

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Text -> token ids, without <|begin_of_text|>. Raises RequestError if `text` is not a str.

        With `allow_special`, the name of a special token in the text becomes that token; by default it is text like any
        other. A surrogate without its other half becomes U+FFFD.
        """
        if not isinstance(text, str):
            raise RequestError(f"text to encode is {type(text).__name__}, expected str")
        text = _join_surrogates(text)
        if not allow_special:
            return self._encode_ordinary(text)
        ids, start = [], 0
        for match in self._special_pattern.finditer(text):
            ids += [*self._encode_ordinary(text[start : match.start()]), self.special[match.group()]]
            start = match.end()
        return ids + self._encode_ordinary(text[start:])

    def _encode_ordinary(self, text: str) -> list[int]:
        if self.fast and self.whole_chunks and not _has_long_space(text):
            ids: list[int] = self._tiktoken.encode_ordinary(text)
            return ids
        ids = []
        for chunk in map(str.encode, split(text)):
            ids += self._encode_short_chunk(chunk) if len(chunk) <= CACHED_CHUNK else self._encode_chunk(chunk)
        return ids

    def _encode_chunk(self, chunk: bytes) -> list[int]:
        if self.whole_chunks and chunk in self.ranks:
            return [self.ranks[chunk]]
        return merge(chunk, self.ranks)

    @cached_property
    def _tiktoken(self) -> Any:
        import tiktoken  # here, so that a tokenizer that is not fast, or that never encodes, does not load it

        return tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens={})

    def __contains__(self, token: int) -> bool:
        """Whether the id belongs to a token. A model's embedding may have more rows than there are tokens."""
        return token in self._bytes

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes, which may be part of a character. Raises TokenizerError for an id that is no token's."""
        try:
            return self._bytes[token]
        except (KeyError, TypeError):
            raise TokenizerError(f"token id {token!r} is not in the vocabulary (0 to {self.vocab_size - 1})") from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Token ids -> the bytes of their text, which may begin or end inside a character."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Token ids -> text. Special tokens are written out; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


class StreamDecoder:
    """Decodes tokens one at a time, into pieces of whole characters that join to `decode` of all the tokens.

    The first bytes of a character are kept until the token with its last byte comes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: an incomplete character, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _check_ids(ranks: dict[bytes, int], special: dict[str, int]) -> None:
    for rank, found in enumerate(sorted(ranks.values())):
        if rank != found:
            expected = f"expected 0 to {len(ranks) - 1}, each once"
            raise TokenizerError(f"rank {rank} is missing (in its place: {found}); {expected}: the file is incomplete")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise TokenizerError(
            f"no token for the byte {lacking[0]:#04x} ({len(lacking)} bytes lack one): the file is incomplete"
        )
    if any(not name or _join_surrogates(name) != name for name in special):
        raise TokenizerError("a special token has no text, or a text that UTF-8 cannot hold")
    if len(set(special.values())) < len(special) or min(special.values(), default=len(ranks)) < len(ranks):
        raise TokenizerError(f"special tokens share an id, or have one below {len(ranks)}, where other tokens are")


def _join_surrogates(text: str) -> str:
    """Two surrogates that form a character become that character. Any other becomes U+FFFD: UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _has_long_space(text: str) -> bool:
    return len(text) > LONGEST_SPACE and max(map(len, re.findall(r"\s+", text)), default=0) > LONGEST_SPACE
