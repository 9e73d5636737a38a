"""The tokenizer: text to token ids and back, special tokens, and decoding of a stream of tokens."""

import codecs
import operator
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

from llama3.added_tokens import AddedToken, AddedTokens
from llama3.byte_pair import PATTERN, merge, split
from llama3.errors import RequestError, TokenizerError
from llama3.lfs_pointer import LFS_POINTER, is_lfs_pointer
from llama3.tokenizer_file import LLAMA3_SPECIAL, read_tiktoken, read_tokenizer_json

BOS = "<|begin_of_text|>"
STOPS = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")  # end of text, of turn, of message; Llama 3.0 lacks the last

LONGEST_SPACE = 100_000  # tiktoken 0.14 panics on a million characters of white space: it backtracks through them
CACHED_CHUNK = 64  # bytes; longer chunks are seldom repeated
CACHES = ("_encode_short_chunk", "_tiktoken")  # attributes of a Tokenizer that are made anew in a copy of it


class Tokenizer:
    """Byte-level BPE with special tokens. `fast` encodes with tiktoken; otherwise `byte_pair.py` finds the same ids.

    It can be pickled and copied.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        special: dict[str, int],
        *,
        added: Iterable[AddedToken] = (),
        whole_chunks: bool = True,
        fast: bool = True,
    ) -> None:
        """`ranks`: each token's bytes -> its id, 0 to n - 1. `special`: each control token's text -> its id, n or more.

        `added`: the added tokens that have more to them than a name and an id, control tokens among them. An added
        token may also repeat one of `ranks`. `whole_chunks`: a chunk that is a token becomes that token, even if merges
        would not lead to it. That is so for 588 tokens of Llama 3, such as " Việt" (101798). Raises TokenizerError if
        the ids have gaps or clash, or if a byte has no token.
        """
        tokens = [*(AddedToken(name, token) for name, token in special.items()), *added]
        self._added = AddedTokens(tokens)  # a later token replaces an earlier one of the same name
        self.added = tuple(self._added.by_name.values())  # the control tokens and all other added tokens
        _check_ids(ranks, self.added)
        self.ranks = ranks
        self.special = {token.content: token.id for token in self.added if token.special}
        self.whole_chunks = whole_chunks
        self.fast = fast
        self.vocab_size = max([*ranks.values(), *(token.id for token in self.added)]) + 1  # the largest id + 1
        self.rows = 0  # rows of the model's embedding, if known: the ids of rows without a token are empty text
        self.chat_template: str | None = None  # of the model's folder, if it has one; `chat.py` checks it
        self.stop_ids = frozenset(self.special[name] for name in STOPS if name in self.special)
        self._bytes = {token.id: token.content.encode() for token in self.added}
        self._bytes |= {token: text for text, token in ranks.items()}
        self._make_caches()

    def _make_caches(self) -> None:
        self._encode_short_chunk = lru_cache(maxsize=1 << 16)(self._encode_chunk)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    @classmethod
    def from_file(cls, path: str | Path, special: Sequence[str] = LLAMA3_SPECIAL, *, fast: bool = True) -> Self:
        """Read a vocabulary: Hugging Face's format if the name ends in .json, otherwise Meta's `tokenizer.model`.

        `special`: the names of the special tokens in the order of their ids, by default Llama 3's (LLAMA3_1_SPECIAL has
        Llama 3.1's). A .json file holds its own names, so `special` is ignored. Raises TokenizerError with the file's
        name.
        """
        try:
            data = Path(path).read_bytes()
            if is_lfs_pointer(data):
                raise TokenizerError(LFS_POINTER)
            is_json = Path(path).suffix == ".json"
            vocabulary = read_tokenizer_json(data) if is_json else read_tiktoken(data, special)
            ranks, names, whole_chunks, added = vocabulary
            return cls(ranks, names, added=added, whole_chunks=whole_chunks, fast=fast)
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
        if doubt := self._added.by_name[name].doubt:
            raise TokenizerError(doubt)
        return self.special[name]

    def flags(self, name: str) -> list[str]:
        """The fields of an added token that make it depend on the text beside it: lstrip, rstrip, single_word."""
        token = self._added.by_name[name]
        return [field for field in ("lstrip", "rstrip", "single_word") if getattr(token, field)]

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Text -> token ids, without <|begin_of_text|>.

        With `allow_special`, the name of a special token in the text becomes that token; by default it is text like any
        other. Added tokens that are not special are always found. A surrogate without its other half becomes U+FFFD.
        Raises RequestError if `text` is not a str, or holds an added token whose id is not certain.
        """
        if not isinstance(text, str):
            raise RequestError(f"text to encode is {type(text).__name__}, expected str")
        ids: list[int] = []
        for part in self._added.split(_join_surrogates(text), allow_special):
            if isinstance(part, str):
                ids += self._encode_ordinary(part)
            elif part.doubt:
                raise RequestError(f"the text holds {part.content!r}, which cannot be used: {part.doubt}")
            else:
                ids.append(part.id)
        return ids

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
        """One token's bytes, which may be part of a character.

        They are empty for a row of the model's embedding that has no token: embeddings are padded to round numbers.
        Raises TokenizerError for any other id.
        """
        try:
            return self._bytes[token] if token in self._bytes or not 0 <= operator.index(token) < self.rows else b""
        except (KeyError, TypeError):
            last = max(self.vocab_size, self.rows) - 1
            raise TokenizerError(f"token id {token!r} is not in the vocabulary (0 to {last})") from None

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


def _check_ids(ranks: dict[bytes, int], added: Sequence[AddedToken]) -> None:
    for rank, found in enumerate(sorted(ranks.values())):
        if rank != found:
            expected = f"expected 0 to {len(ranks) - 1}, each once"
            raise TokenizerError(f"rank {rank} is missing (in its place: {found}); {expected}: the file is incomplete")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise TokenizerError(
            f"no token for the byte {lacking[0]:#04x} ({len(lacking)} bytes lack one): the file is incomplete"
        )
    if any(not token.content or _join_surrogates(token.content) != token.content for token in added):
        raise TokenizerError("an added token has no text, or a text that UTF-8 cannot hold")
    name_of: dict[int, str] = {}
    for token in added:
        if token.id < len(ranks) and ranks.get(token.content.encode()) != token.id:
            raise TokenizerError(
                f"the added token {token.content!r} has the id {token.id}, below {len(ranks)}, where other tokens are"
            )
        if name_of.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"the added tokens {name_of[token.id]!r} and {token.content!r} share an id: both have {token.id}"
            )


def _join_surrogates(text: str) -> str:
    """Two surrogates that form a character become that character. Any other becomes U+FFFD: UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _has_long_space(text: str) -> bool:
    return len(text) > LONGEST_SPACE and max(map(len, re.findall(r"\s+", text)), default=0) > LONGEST_SPACE
