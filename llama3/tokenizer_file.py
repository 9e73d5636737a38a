"""Vocabulary files: Meta's `tokenizer.model` (tiktoken's format) and Hugging Face's `tokenizer.json`."""

import base64
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from llama3.added_tokens import AddedToken
from llama3.byte_pair import PATTERN, split
from llama3.errors import TokenizerError

# `tokenizer.model` does not name the special tokens. Their ids follow the last rank, in this order.
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",  # end of turn
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)
LLAMA3_1_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",  # end of message: the turn goes on after a tool's answer
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(2, 246)),
)


class Vocabulary(NamedTuple):
    """What a vocabulary file holds: the arguments of `Tokenizer`."""

    ranks: dict[bytes, int]
    special: dict[str, int]
    whole_chunks: bool  # a chunk that is a token becomes that token, even if merging its bytes gives others
    added: tuple[AddedToken, ...] = ()  # the added tokens with other fields than a control token's defaults


def read_tiktoken(data: bytes, special: Sequence[str] = LLAMA3_SPECIAL) -> Vocabulary:
    """Read Meta's file: each line is a token's bytes in base64, a space, and its rank.

    Raises TokenizerError with the line that is wrong.
    """
    ranks: dict[bytes, int] = {}
    line_of: dict[int, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            encoded, decimal = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(decimal)
        except ValueError as error:
            raise TokenizerError(f"line {number} is {_show(line)}; {_expected(data)}") from error
        if token in ranks:
            raise TokenizerError(f"line {number} repeats the token {token!r} of line {line_of[ranks[token]]}")
        if rank in line_of:
            raise TokenizerError(f"line {number} repeats the rank {rank} of line {line_of[rank]}")
        ranks[token], line_of[rank] = rank, number
    if not ranks:
        raise TokenizerError(f"holds no tokens; {_expected(data)}")
    return Vocabulary(ranks, {name: len(ranks) + i for i, name in enumerate(special)}, True)


def _expected(data: bytes) -> str:
    """The end of an error message: what is expected, what to do, and whether this is a Llama 2 file."""
    if b"<unk>" in data[:100] or "▁".encode() in data[:10_000]:
        return "this is a SentencePiece model, as Llama 2 had: take the tokenizer.model of a Llama 3 checkpoint"
    return "expected base64, a space and a rank on each line (tiktoken's format): fetch the file again"


def _show(line: bytes) -> str:
    """The line in quotation marks, cut after 40 bytes."""
    return repr(line if len(line) <= 40 else line[:40] + b"...")[1:]


# The fields of tokenizer.json on which Llama 3's ids depend: the pattern splits the text, each byte of a chunk becomes
# one character (GPT-2's `bytes_to_unicode`), and nothing else happens before the merges.
EXPECTED = {
    "model.type": "BPE",
    "normalizer": None,
    "pre_tokenizer.type": "Sequence",
    "pre_tokenizer.pretokenizers.0.type": "Split",
    "pre_tokenizer.pretokenizers.0.pattern.Regex": PATTERN,
    "pre_tokenizer.pretokenizers.0.behavior": "Isolated",
    "pre_tokenizer.pretokenizers.0.invert": False,
    "pre_tokenizer.pretokenizers.1.type": "ByteLevel",
    "pre_tokenizer.pretokenizers.1.add_prefix_space": False,
    "pre_tokenizer.pretokenizers.1.use_regex": False,
    "pre_tokenizer.pretokenizers.2": None,
}
NOT_LLAMA3 = "this is not Llama 3's tokenizer: take the files of a Llama 3 checkpoint"


def read_tokenizer_json(data: bytes) -> Vocabulary:
    """Read Hugging Face's file.

    Raises TokenizerError, naming the field, if the file would not give Llama 3's ids: another kind of model, another
    split pattern, or merges that do not follow the ids.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"is not JSON ({error}): fetch the file again") from error
    for field, expected in EXPECTED.items():
        if (found := _field(content, field)) != expected:
            raise TokenizerError(f"{field} is {_short(found)}, expected {expected!r}; {NOT_LLAMA3}")
    vocab = _typed(content, "model.vocab", dict)
    merges = _typed(content, "model.merges", list)
    added = _read_added(content, vocab)
    vocab = _without_control_tokens(vocab, added, merges)
    ranks: dict[bytes, int] = {}
    for token, rank in vocab.items():
        letters = _bytes_of(token)
        if type(rank) is not int or letters is None:
            raise TokenizerError(
                f"model.vocab has {token!r}: {rank!r}, expected GPT-2's letters and a rank; {NOT_LLAMA3}"
            )
        ranks[letters] = rank
    _check_merges(merges, vocab)
    special = {token.content: token.id for token in added if token.special}
    more = tuple(token for token in added if token != AddedToken(token.content, token.id))
    return Vocabulary(ranks, special, _field(content, "model.ignore_merges") is True, more)


def _read_added(content: Any, vocab: dict[str, Any]) -> list[AddedToken]:
    """The entries of `added_tokens`. If `special` is missing, it is true; any other missing flag is false.

    The package `tokenizers` ignores the ids in the file and numbers the tokens itself. Where the two ids differ, or two
    tokens get the same id, it is unclear which id the model was trained with, and `doubt` says so.
    """
    tokens: dict[str, AddedToken] = {}
    field_of: dict[str, str] = {}
    for i in range(len(_typed(content, "added_tokens", list))):
        field = f"added_tokens.{i}"
        name, token = _typed(content, f"{field}.content", str), _typed(content, f"{field}.id", int)
        flags = {flag: _field(content, f"{field}.{flag}") for flag in AddedToken._fields[2:7]}
        for flag, value in flags.items():
            if value is not None and type(value) is not bool:
                raise TokenizerError(f"{field}.{flag} is {_short(value)}, expected true or false")
        found = AddedToken(name, token, **{flag: value for flag, value in flags.items() if value is not None})
        if tokens.setdefault(name, found) != found:
            raise TokenizerError(f"{field}.content repeats {_short(name)} with another id or other flags")
        field_of.setdefault(name, field)
    tokens.pop("", None)  # `tokenizers` skips a token with an empty name
    new = itertools.count(len(vocab))
    counted = {name: vocab[name] if name in vocab else next(new) for name in tokens}
    uses = Counter(map(str, counted.values()))  # as text: an id in model.vocab may be of any type, and is checked later
    for name, token in counted.items():
        if token != tokens[name].id or uses[str(token)] > 1:
            also = " and to another token" * (uses[str(token)] > 1)
            doubt = f"{field_of[name]}.id is {tokens[name].id}, but the package `tokenizers` gives it {token}{also}"
            tokens[name] = tokens[name]._replace(doubt=doubt)
    return list(tokens.values())


def _without_control_tokens(vocab: dict[str, Any], added: list[AddedToken], merges: list[Any]) -> dict[str, Any]:
    """The entries of `model.vocab` that are tokens of text.

    Some files list the added tokens in `model.vocab` as well, others list tokens of text in `added_tokens`. A token in
    both lists is a token of text if it is a single byte or the result of a merge. It is also one if it is not special
    and the pattern can split a text into chunks that equal it.
    """
    made = {merge.replace(" ", "", 1) for merge in merges if isinstance(merge, str)}
    made |= {"".join(map(str, merge)) for merge in merges if isinstance(merge, list)}
    listed = {token.content: token for token in added if vocab.get(token.content) == token.id}

    def is_text(name: str) -> bool:
        if name not in listed or name in made or name in _bytes_of_gpt2():
            return True
        text = (_bytes_of(name) or b"").decode(errors="ignore")
        return not listed[name].special and split(text) == [text]

    return {name: rank for name, rank in vocab.items() if is_text(name)}


def _field(content: Any, path: str) -> Any:
    """The value at a path; None if it is absent: `_field({"a": [{"b": 1}]}, "a.0.b") == 1`."""
    for key in path.split("."):
        if isinstance(content, list):
            content = content[int(key)] if key.isdecimal() and int(key) < len(content) else None
        else:
            content = content.get(key) if isinstance(content, dict) else None
    return content


def _typed(content: Any, field: str, kind: type) -> Any:
    value = _field(content, field)
    if not isinstance(value, kind):
        raise TokenizerError(f"{field} is {_short(value)}, expected a {kind.__name__}; {NOT_LLAMA3}")
    return value


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _check_merges(merges: list[Any], vocab: dict[str, int]) -> None:
    """Raises TokenizerError unless the file merges in the order of ids, and merges every pair that forms a token.

    Only then does merging by rank, as `byte_pair.merge` does it, give the file's ids.
    """
    last = 0
    for merge in merges:
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge  # older files: "a b", newer: ["a", "b"]
            rank = vocab[left + right] if left in vocab and right in vocab else -1
        except (KeyError, TypeError, ValueError):
            rank = -1
        if rank < last:
            raise TokenizerError(
                f"model.merges does not follow the ids of model.vocab at {_short(merge)}; {NOT_LLAMA3}"
            )
        last = rank
    pairs = sum(token[:i] in vocab and token[i:] in vocab for token in vocab for i in range(1, len(token)))
    if len(merges) != pairs:
        raise TokenizerError(f"model.merges has {len(merges)} pairs, but {pairs} form a token; {NOT_LLAMA3}")


def _bytes_of(token: str) -> bytes | None:
    """The bytes of a token that is written in GPT-2's letters; None if it holds other letters."""
    byte_of = _bytes_of_gpt2()
    return bytes(byte_of[letter] for letter in token) if byte_of.keys() >= set(token) else None


@cache
def _bytes_of_gpt2() -> dict[str, int]:
    """Character -> byte, the inverse of GPT-2's `bytes_to_unicode`.

    A byte that is printable in Latin-1 is that character. The other bytes are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
