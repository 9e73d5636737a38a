"""Both vocabulary files give the same tokenizer, and a file that would not give Llama 3's ids is refused."""

import base64
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3.byte_pair import PATTERN
from llama3.errors import Llama3Error, TokenizerError
from llama3.tokenizer import Tokenizer
from llama3.tokenizer_file import LLAMA3_SPECIAL, read_tiktoken, read_tokenizer_json

RANKS = {bytes([(i + 33) % 256]): i for i in range(256)} | {
    b"ab": 256,
    b"\xc3\xa9": 257,
    b"abc": 258,
    b" a": 259,
    b"xyz": 260,
}
SPECIAL = {"<|begin_of_text|>": 261, "<|eot_id|>": 262}
MERGES = [("a", "b"), ("Ã", "©"), ("ab", "c"), ("Ġ", "a")]  # none leads to xyz, as for 588 tokens of Llama 3


def as_tiktoken(ranks: dict[bytes, int] = RANKS) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


def letter(byte: int) -> str:
    """GPT-2's letter for a byte, computed in another way: printable bytes are themselves, the others U+0100 and on."""
    plain = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xAD)]
    return chr(byte) if byte in plain else chr(0x100 + [b for b in range(256) if b not in plain].index(byte))


def as_json() -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": name, "special": True} for name, token in SPECIAL.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {"".join(map(letter, token)): rank for token, rank in RANKS.items()},
            "merges": [list(pair) for pair in MERGES],
        },
    }


def test_a_tiktoken_file_gives_its_ranks_and_special_tokens_after_them() -> None:
    ranks, special, whole_chunks, _ = read_tiktoken(as_tiktoken())
    assert ranks == RANKS
    assert list(special) == list(LLAMA3_SPECIAL)
    assert list(special.values()) == list(range(261, 261 + 256))
    assert whole_chunks


def test_lines_may_come_in_any_order_and_with_any_line_ends() -> None:
    lines = as_tiktoken().splitlines()[::-1]
    assert read_tiktoken(b"\r\n".join(lines) + b"\r\n\r\n").ranks == RANKS


def test_both_files_give_the_same_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(as_tiktoken())
    (tmp_path / "tokenizer.json").write_text(json.dumps(as_json()))
    tiktoken_s = Tokenizer.from_file(tmp_path / "tokenizer.model", list(SPECIAL))
    json_s = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert json_s.ranks == tiktoken_s.ranks == RANKS
    assert json_s.special == tiktoken_s.special == SPECIAL
    assert json_s.encode("xyz abc é") == tiktoken_s.encode("xyz abc é") == [260, 255, 258, 255, 257]


def test_merges_may_be_written_as_pairs_or_as_text() -> None:
    content = as_json()
    content["model"]["merges"] = [" ".join(pair) for pair in MERGES]
    assert read_tokenizer_json(json.dumps(content).encode()) == read_tokenizer_json(json.dumps(as_json()).encode())


def test_special_tokens_that_are_in_the_vocab_too_are_no_ranks() -> None:
    content = as_json()
    content["model"]["vocab"] |= SPECIAL
    assert read_tokenizer_json(json.dumps(content).encode()).ranks == RANKS


@pytest.mark.parametrize("fast", [True, False])
def test_a_file_that_does_not_ignore_merges_gets_merges_only(fast: bool) -> None:
    content = as_json()
    content["model"]["ignore_merges"] = False
    ranks, special, whole_chunks, _ = read_tokenizer_json(json.dumps(content).encode())
    tokenizer = Tokenizer(ranks, special, whole_chunks=whole_chunks, fast=fast)
    assert tokenizer.encode("xyz abc") == [87, 88, 89, 255, 258]


TINY = as_tiktoken()
BAD_MODEL = {
    "empty": (b"", "holds no tokens; expected base64"),
    "sentencepiece": (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n", "SentencePiece model, as Llama 2 had: take"),
    "not text": (b"\x80\xff\x00" * 50, r"line 1 is '\\x80.*\.\.\.'; expected base64"),
    "page": (b"<html><body>Sign in</body></html>", "line 1 is '<html><body>Sign in</body></html>'; expected base64"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    "base64": (TINY.replace(b"YWI=", b"YWI"), "line 257 is 'YWI 256'; expected base64"),
    "stray letter": (TINY.replace(b"YWI=", b"YW*I="), r"line 257 is 'YW\*I= 256'; expected base64"),
    "no rank": (TINY.replace(b" 256\n", b"\n"), "line 257 is 'YWI='"),
    "rank": (TINY.replace(b" 256\n", b" 2x6\n"), "line 257 is 'YWI= 2x6'"),
    "same rank": (TINY.replace(b" 256\n", b" 12\n"), "line 257 repeats the rank 12 of line 13"),
    "same token": (TINY.replace(b"YWI=", b"IQ=="), "line 257 repeats the token b'!' of line 1"),
    "missing rank": (TINY.replace(b"YWI= 256\n", b""), "rank 256 is missing"),
    "negative rank": (TINY.replace(b" 256\n", b" -1\n"), r"rank 0 is missing \(in its place: -1\)"),
    "missing byte": (
        as_tiktoken({t: r for t, r in RANKS.items() if r < 200}),
        r"no token for the byte 0x.* \(56 bytes",
    ),
    "cut short": (TINY[:1000], "line "),
}


@pytest.mark.parametrize("name", BAD_MODEL)
def test_a_bad_tokenizer_model_is_explained(name: str, tmp_path: Path) -> None:
    data, message = BAD_MODEL[name]
    file = tmp_path / "tokenizer.model"
    file.write_bytes(data)
    with pytest.raises(TokenizerError, match=f"^{re.escape(str(file))}: .*{message}") as caught:
        Tokenizer.from_file(file)
    assert "\n" not in str(caught.value)


def change(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *path, last = field.split(".")

    def apply(content: Any) -> None:
        for key in path:
            content = content[int(key)] if isinstance(content, list) else content[key]
        content[int(last) if isinstance(content, list) else last] = value

    return apply


STEPS = "pre_tokenizer.pretokenizers"
BAD_JSON = {
    "no model": (change("model", None), "model.type is missing, expected 'BPE'"),
    "unigram": (change("model.type", "Unigram"), "model.type is 'Unigram', expected 'BPE'"),
    "normalizer": (change("normalizer", {"type": "NFC"}), "normalizer is {'type': 'NFC'}, expected None"),
    "llama 2": (change("pre_tokenizer", None), "pre_tokenizer.type is missing, expected 'Sequence'"),
    "pattern": (change(f"{STEPS}.0.pattern.Regex", r"\s+"), f"{STEPS}.0.pattern.Regex is .*, expected .*i:'s"),
    "behavior": (change(f"{STEPS}.0.behavior", "Removed"), "behavior is 'Removed', expected 'Isolated'"),
    "byte level": (change(f"{STEPS}.1.type", "Metaspace"), f"{STEPS}.1.type is 'Metaspace'"),
    "prefix space": (change(f"{STEPS}.1.add_prefix_space", True), "add_prefix_space is True, expected False"),
    "third step": (lambda c: c["pre_tokenizer"]["pretokenizers"].append({}), f"{STEPS}.2 is {{}}, expected None"),
    "no added tokens": (change("added_tokens", None), "added_tokens is missing, expected a list"),
    "added token": (change("added_tokens.1", {"id": 5}), "added_tokens.1.content is missing, expected a str"),
    "added id": (change("added_tokens.1.id", "262"), "added_tokens.1.id is '262', expected a int"),
    "added id taken": (change("added_tokens.1.id", 7), "added token .<.eot_id.>. has the id 7, below 261"),
    "no vocab": (change("model.vocab", []), r"model.vocab is \[\], expected a dict"),
    "rank": (change("model.vocab.ab", "256"), "model.vocab has 'ab': '256', expected GPT-2's letters and a rank"),
    "letter": (change("model.vocab.▁the", 261), "model.vocab has '▁the': 261, expected GPT-2's letters"),
    "missing rank": (
        lambda c: c["model"]["vocab"].pop("xyz") and c["model"]["vocab"].update(qxz=261),
        "rank 260 is missing",
    ),
    "no merges": (change("model.merges", None), "model.merges is missing, expected a list"),
    "merge order": (
        lambda c: c["model"]["merges"].reverse(),
        r"does not follow the ids of model.vocab at \['ab', 'c'\]",
    ),
    "unknown merge": (change("model.merges.0", ["x", "y"]), r"does not follow the ids of model.vocab at \['x', 'y'\]"),
    "not a merge": (change("model.merges.0", 7), "does not follow the ids of model.vocab at 7"),
    "three in a merge": (change("model.merges.0", "a b c"), "does not follow the ids of model.vocab at 'a b c'"),
    "merge left out": (lambda c: c["model"]["merges"].pop(), "model.merges has 3 pairs, but 4 form a token"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_tokenizer_json_that_would_not_give_llama_3_s_ids_is_refused_by_field(name: str, tmp_path: Path) -> None:
    spoil, message = BAD_JSON[name]
    content = copy.deepcopy(as_json())
    spoil(content)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=f"^{re.escape(str(file))}: .*{message}") as caught:
        Tokenizer.from_file(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"[]", b"null", b'{"model": 1}', b'"text"'])
def test_a_tokenizer_json_that_is_something_else_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer.json: (is not JSON|model.type is missing)"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@given(st.binary(max_size=200), st.integers(0, len(TINY)), st.booleans())
def test_no_damage_leads_to_anything_but_a_tokenizer_error(junk: bytes, at: int, json_too: bool) -> None:
    damaged = TINY[:at] + junk + TINY[at + len(junk) // 2 :]
    try:
        vocabulary = read_tokenizer_json(junk) if json_too else read_tiktoken(damaged)
        Tokenizer(vocabulary.ranks, vocabulary.special)
    except Llama3Error as error:
        assert str(error)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"^{re.escape(str(tmp_path / name))} cannot be read: .*director"):
        Tokenizer.from_file(tmp_path / name)
