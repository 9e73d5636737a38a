"""Vocabulary files: Meta's `tokenizer.model` (tiktoken's format) and Hugging Face's `tokenizer.json`."""

import base64
import json
from typing import Any, NamedTuple

from llama3.byte_pair import PATTERN
from llama3.errors import TokenizerError

# `tokenizer.model` holds no names of special tokens. Their ids follow the last rank, in this order.
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

_NOT_LLAMA3 = "this is not Llama 3's tokenizer: take the files of a Llama 3 checkpoint"


class Vocabulary(NamedTuple):
    ranks: dict[bytes, int]
    special: dict[str, int]
    whole_chunks: bool  # a chunk that is a token is that token, even where merges would not lead to it


def read_tiktoken(data: bytes, special: tuple[str, ...] = LLAMA3_SPECIAL) -> Vocabulary:
    """Lines of a token's bytes in base64, a space, and its rank. Raises TokenizerError with the line at fault."""
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
    if b"<unk>" in data[:100] or "▁".encode() in data[:10_000]:
        return "this is a SentencePiece model, as Llama 2 had: take the tokenizer.model of a Llama 3 checkpoint"
    if data.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    return "expected base64, a space and a rank on each line (tiktoken's format): fetch the file again"


def _show(line: bytes) -> str:
    return repr(line if len(line) <= 40 else line[:40] + b"...")[1:]


def read_json(data: bytes) -> Vocabulary:
    """Hugging Face's file with the same vocabulary. Raises TokenizerError, naming the field, if it would not give
    Llama 3's ids: another kind of model, another split pattern, or merges that do not follow the ids."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"is not JSON ({error}): fetch the file again") from error
    model = _field(content, "model", dict)
    _same("model.type", model.get("type"), "BPE")
    _same("normalizer", content.get("normalizer"), None)
    _check_split(_field(content, "pre_tokenizer", dict))

    special = {
        _field(token, "content", str): _field(token, "id", int) for token in _field(content, "added_tokens", list)
    }
    vocab = {token: rank for token, rank in _field(model, "vocab", dict).items() if special.get(token) != rank}
    _check_merges(_field(model, "merges", list), vocab)
    byte_of = _bytes_of_gpt2()
    try:
        ranks = {bytes(byte_of[letter] for letter in token): rank for token, rank in vocab.items()}
    except KeyError as error:
        raise TokenizerError(f"model.vocab has the letter {error}, which stands for no byte; {_NOT_LLAMA3}") from error
    return Vocabulary(ranks, special, model.get("ignore_merges") is True)


def _field(parent: Any, name: str, kind: type) -> Any:
    value = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        raise TokenizerError(f"field {name} is {_short(value)}, expected {kind.__name__}; {_NOT_LLAMA3}")
    return value


def _same(name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise TokenizerError(f"{name} is {_short(found)}, expected {expected!r}; {_NOT_LLAMA3}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _check_split(pre_tokenizer: dict[str, Any]) -> None:
    """The pattern cuts the text, then the bytes of each chunk are spelled in GPT-2's letters: that and nothing else."""
    steps = _field(pre_tokenizer, "pretokenizers", list)
    _same("pre_tokenizer.pretokenizers", [_field(step, "type", str) for step in steps], ["Split", "ByteLevel"])
    split, byte_level = steps
    _same("pre_tokenizer's pattern", split.get("pattern"), {"Regex": PATTERN})
    _same("pre_tokenizer's behavior", split.get("behavior"), "Isolated")
    _same("pre_tokenizer's invert", split.get("invert"), False)
    _same("pre_tokenizer's add_prefix_space", byte_level.get("add_prefix_space"), False)
    _same("pre_tokenizer's use_regex", byte_level.get("use_regex"), False)


def _check_merges(merges: list[Any], vocab: dict[str, int]) -> None:
    """Merging by rank is right only if the file merges in the order of ids, and merges each pair that forms a token."""
    last = -1
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge  # older files have "a b", newer ["a", "b"]
        rank = vocab.get(left + right, -1)
        if rank < last or left not in vocab or right not in vocab:
            raise TokenizerError(f"model.merges does not follow the ids at {_short(merge)}; {_NOT_LLAMA3}")
        last = rank
    pairs = sum(token[:i] in vocab and token[i:] in vocab for token in vocab for i in range(1, len(token)))
    if len(merges) != pairs:
        raise TokenizerError(
            f"model.merges has {len(merges)} pairs, but {pairs} pairs of tokens form a token; {_NOT_LLAMA3}"
        )


def _bytes_of_gpt2() -> dict[str, int]:
    """GPT-2 spells bytes as letters one can see: printable Latin-1 as itself, the others as U+0100, U+0101, ..."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
