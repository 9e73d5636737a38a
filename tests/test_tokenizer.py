"""The tokenizer gives tiktoken's ids for Llama 3's real vocabulary, with tiktoken and by hand, for any text.

The oracle is the tokenizer in Meta's package llama-models.
"""

import copy
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3.added_tokens import AddedToken
from llama3.errors import RequestError, TokenizerError
from llama3.tokenizer import LONGEST_SPACE, StreamDecoder, Tokenizer
from llama3.tokenizer_file import LLAMA3_1_SPECIAL, LLAMA3_SPECIAL
from tests import real_vocabulary as real

BYTES = {bytes([i]): i for i in range(256)}
both = pytest.mark.parametrize("fast", [True, False], ids=["fast", "by_hand"])


def assert_as_tiktoken(text: str, fast: bool) -> None:
    ids = real.tokenizer(fast).encode(text)
    assert ids == real.meta().model.encode_ordinary(text)
    assert real.tokenizer(fast).decode(ids) == text


@both
def test_every_token_is_encoded_and_decoded_as_by_tiktoken(fast: bool) -> None:
    tokenizer, oracle = real.tokenizer(fast), real.meta().model
    assert len(tokenizer.ranks) == 128_000
    for token in range(128_000):
        text = oracle.decode_single_token_bytes(token)
        assert tokenizer.token_bytes(token) == text
        ids = tokenizer.encode(text.decode(errors="replace"))
        assert ids == oracle.encode_ordinary(text.decode(errors="replace"))
        assert ids == [token] or "\ufffd" in text.decode(errors="replace")


@settings(max_examples=500)  # of 20 texts each
@given(texts=st.lists(real.texts(), min_size=20, max_size=20))
def test_any_texts_are_encoded_as_by_tiktoken_and_decoded_to_themselves(texts: list[str]) -> None:
    for text in texts:
        assert_as_tiktoken(text, fast=False)
        assert_as_tiktoken(text, fast=True)


@both
def test_texts_of_random_tokens_are_encoded_as_by_tiktoken(fast: bool) -> None:
    oracle, choose = real.meta().model, random.Random(0)
    for _ in range(10_000):
        assert_as_tiktoken(oracle.decode([choose.randrange(128_000) for _ in range(8)]), fast)


# From the tests of meta-llama/llama3, llama.cpp (ggml-vocab-llama-bpe) and tinygrad.
PUBLISHED = {
    "": [],
    "This is a test sentence.": [2028, 374, 264, 1296, 11914, 13],
    "Hello world": [9906, 1917],
    " Hello World!": [22691, 4435, 0],
    "ied 4 ½ months": [1142, 220, 19, 220, 27154, 4038],
    "Führer": [37, 51853, 261],
    " this is 🦙.cpp": [420, 374, 11410, 99, 247, 13, 11055],
    "    Hello\n    Hello": [262, 22691, 198, 262, 22691],
    "\n =": [198, 284],
    "\t\n": [1602],
    "' era": [6, 11639],
    "3333333": [8765, 8765, 18],
    " Việt": [101798],  # merges alone lead to 11655, 26298, 83
    " например": [111797],
}


@both
@pytest.mark.parametrize("text", PUBLISHED)
def test_published_ids(text: str, fast: bool) -> None:
    assert real.tokenizer(fast).encode(text) == PUBLISHED[text]


@pytest.mark.slow
def test_without_whole_chunks_588_tokens_are_out_of_reach() -> None:
    tokenizer = Tokenizer(real.tokenizer(False).ranks, {}, whole_chunks=False)
    texts = [tokenizer.token_bytes(token).decode(errors="replace") for token in range(128_000)]
    reached = [tokenizer.encode(text) == [token] for token, text in enumerate(texts) if "\ufffd" not in text]
    assert tokenizer.encode(" Việt") == [11655, 26298, 83]
    assert reached.count(False) == 588


REPEATED = ["x", " ", "0", "^", "\n", "é", "'s", " a", "ab", " \n", "\t", "\u3000", "🦙", "the", "\r\n", "\x1c", "\x85"]


@both
@pytest.mark.parametrize("text", REPEATED, ids=ascii)
def test_a_text_repeated_10_000_times(text: str, fast: bool) -> None:
    assert_as_tiktoken(text * 10_000, fast)
    assert_as_tiktoken(text * 10_001 + "x", fast)


@both
def test_a_long_run_of_white_space_is_encoded_as_by_tiktoken(fast: bool) -> None:
    assert_as_tiktoken("a " + " " * LONGEST_SPACE + "b\n", fast)


@pytest.mark.parametrize("n", [LONGEST_SPACE + 50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_more_white_space_than_tiktoken_can_split(n: int) -> None:
    """It panics on a million. It gets none of these texts, and its merges of a single piece are what is expected."""
    oracle = real.meta().model
    ids = real.tokenizer(fast=True).encode(" " * n + "x")
    assert ids == [*oracle._encode_single_piece(" " * (n - 1)), *oracle.encode_ordinary(" x")]


@both
def test_a_million_times_x(fast: bool) -> None:
    assert_as_tiktoken("x" * 1_000_000, fast)


@both
def test_a_megabyte_of_text(fast: bool) -> None:
    oracle, choose = real.meta().model, random.Random(1)
    text = oracle.decode([choose.randrange(128_000) for _ in range(150_000)])
    assert_as_tiktoken(text.encode()[:1_000_000].decode(errors="replace"), fast)


@both
@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("\ud83e\udd99", "🦙"),
        ("a\ud83e b", "a\ufffd b"),
        ("\udd99\ud83e", "\ufffd\ufffd"),
        ("\ud83e", "\ufffd"),
        ("x\ud83e\ud83e\udd99\udd99", "x\ufffd🦙\ufffd"),
    ],
    ids=ascii,
)
def test_surrogates_join_to_a_character_or_become_the_replacement_character(
    text: str, same_as: str, fast: bool
) -> None:
    assert real.tokenizer(fast).encode(text) == real.meta().model.encode_ordinary(text)
    assert real.tokenizer(fast).decode(real.tokenizer(fast).encode(text)) == same_as


@both
@given(
    st.text(st.characters(categories=["Cs", "L"], max_codepoint=0xDFFF, exclude_characters=real.unicode_differences()))
)
def test_any_surrogates_are_encoded_as_by_tiktoken(fast: bool, text: str) -> None:
    assert real.tokenizer(fast).encode(text) == real.meta().model.encode_ordinary(text)


@given(st.lists(st.integers(0, 128_255)))
def test_a_stream_s_pieces_join_to_the_whole_decode(ids: list[int]) -> None:
    tokenizer = real.tokenizer(True)
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 255)))
def test_a_stream_of_single_bytes_gives_whole_characters_only(data: list[int]) -> None:
    stream = StreamDecoder(Tokenizer(BYTES, {}))
    pieces = [*map(stream.push, data), stream.flush()]
    assert "".join(pieces) == bytes(data).decode(errors="replace")
    text = "🦙 é 例 a"
    pieces = [*map(stream.push, text.encode()), stream.flush()]
    assert [piece for piece in pieces if piece] == list(text)


@given(real.texts())
def test_no_piece_of_a_stream_holds_half_a_character(text: str) -> None:
    stream = StreamDecoder(real.tokenizer(True))
    pieces = [stream.push(token) for token in real.tokenizer(True).encode(text)]
    assert "".join(pieces) == text  # complete before the flush, so nothing was replaced on the way
    assert stream.flush() == ""


def test_a_special_token_ends_a_character_that_is_not_whole() -> None:
    tokenizer = Tokenizer(BYTES, {"<|eot_id|>": 256})
    stream = StreamDecoder(tokenizer)
    assert [stream.push(token) for token in [0xF0, 0x9F, 256, 0x61]] == ["", "", "\ufffd<|eot_id|>", "a"]
    assert tokenizer.decode([0xF0, 0x9F, 256, 0x61]) == "\ufffd<|eot_id|>a"


@cache
def with_names_of_llama_3_1() -> Tokenizer:
    return Tokenizer.from_file(real.file(), LLAMA3_1_SPECIAL)


@given(st.lists(st.integers(0, 128_255)))
def test_decoding_is_tiktoken_s(ids: list[int]) -> None:
    tokenizer = with_names_of_llama_3_1()
    assert tokenizer.decode(ids) == real.meta().decode(ids)
    assert tokenizer.decode_bytes(np.array(ids, dtype=np.int32)) == real.meta().model.decode_bytes(ids)


@both
def test_special_tokens_are_plain_text_unless_allowed(fast: bool) -> None:
    tokenizer = real.tokenizer(fast)
    assert tokenizer.special_id("<|begin_of_text|>") == tokenizer.bos_id == 128_000
    for name, token in tokenizer.special.items():
        assert tokenizer.encode(f"a{name} b", allow_special=True) == [64, token, 293]
        assert max(tokenizer.encode(f"a{name} b")) < 128_000
        assert tokenizer.decode([token]) == name
    text = "<|begin_of_text|><|eot_id|>\n\n<|nothing|>  <|eot_id|"
    names = {name: token for name, token in tokenizer.special.items() if name in text}
    oracle = real.meta().model
    assert tokenizer.encode(text, allow_special=True) == oracle.encode(
        text, allowed_special=set(names), disallowed_special=()
    )
    assert tokenizer.encode(text) == oracle.encode_ordinary(text)


def test_of_two_special_tokens_that_fit_the_longer_is_taken() -> None:
    assert Tokenizer(BYTES, {"<a": 256, "<a>": 257}, fast=False).encode("<a><a", allow_special=True) == [257, 256]


def test_special_tokens_have_meta_s_names_and_follow_the_last_rank() -> None:
    assert len(set(LLAMA3_SPECIAL)) == len(set(LLAMA3_1_SPECIAL)) == 256
    assert with_names_of_llama_3_1().special == real.meta().special_tokens
    published = {128_001: "<|end_of_text|>", 128_006: "<|start_header_id|>", 128_007: "<|end_header_id|>"}
    published |= {128_009: "<|eot_id|>", 128_255: "<|reserved_special_token_250|>"}
    assert published.items() <= {token: name for name, token in real.tokenizer(True).special.items()}.items()
    assert real.tokenizer(True).vocab_size == 128_256


def test_a_turn_and_a_text_stop_and_with_llama_3_1_a_message_too() -> None:
    assert real.tokenizer(True).stop_ids == {128_001, 128_009}
    assert Tokenizer(BYTES, {name: 256 + i for i, name in enumerate(LLAMA3_1_SPECIAL)}).stop_ids == {257, 264, 265}


@pytest.mark.parametrize("token", [-1, 128_256, 10**20, "a", None, 1.5, []])
def test_an_id_that_is_not_in_the_vocabulary_is_an_error(token: Any) -> None:
    with pytest.raises(TokenizerError, match=r"is not in the vocabulary \(0 to 128255\)"):
        real.tokenizer(True).decode([token])
    with pytest.raises(TokenizerError, match="token id"):
        StreamDecoder(real.tokenizer(True)).push(token)


@pytest.mark.parametrize("text", [None, b"abc", 5, ["a"]])
def test_only_a_str_can_be_encoded(text: Any) -> None:
    with pytest.raises(RequestError, match=r"text to encode is \w+, expected str"):
        real.tokenizer(True).encode(text)


def test_a_vocabulary_without_begin_of_text_says_so() -> None:
    with pytest.raises(TokenizerError, match=r"has no special token <\|begin_of_text\|>"):
        _ = Tokenizer(BYTES, {}).bos_id


BAD_IDS: dict[str, Callable[[], Tokenizer]] = {
    "rank 256 is missing": lambda: Tokenizer(BYTES | {b"ab": 257}, {}),
    "no token for the byte 0x41": lambda: Tokenizer({b"ab" if k == b"A" else k: v for k, v in BYTES.items()}, {}),
    "share an id": lambda: Tokenizer(BYTES, {"<a>": 256, "<b>": 256}),
    "below 256": lambda: Tokenizer(BYTES, {"<a>": 255}),
    "has no text": lambda: Tokenizer(BYTES, {"": 256}),
}


@pytest.mark.parametrize("message", BAD_IDS)
def test_ids_that_clash_or_are_missing_are_an_error(message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        BAD_IDS[message]()


@both
@pytest.mark.parametrize("copied", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy, copy.copy])
def test_a_tokenizer_can_be_pickled_and_copied_without_its_caches(
    fast: bool, copied: Callable[[Tokenizer], Tokenizer]
) -> None:
    added = [AddedToken("<tool_call>", 300, special=False, lstrip=True)]
    tokenizer = Tokenizer(BYTES, {"<|eot_id|>": 256}, added=added, fast=fast)
    tokenizer.rows, tokenizer.chat_template = 400, "{{ messages }}"
    text = "Hello  <tool_call>, <|eot_id|> world"
    ids = tokenizer.encode(text)  # fills the caches
    other = copied(tokenizer)
    assert other.encode(text) == ids and other.encode(text, allow_special=True) == tokenizer.encode(text, True)
    assert other.decode([*ids, 399]) == tokenizer.decode(ids)
    assert {n: v for n, v in vars(other).items() if n in ("added", "rows", "chat_template", "stop_ids", "special")} == {
        n: getattr(tokenizer, n) for n in ("added", "rows", "chat_template", "stop_ids", "special")
    }
    assert len(pickle.dumps(tokenizer)) < 20_000


def test_added_tokens_that_are_not_special_are_always_found() -> None:
    added = [AddedToken("<tool_call>", 300, special=False)]
    tokenizer = Tokenizer(BYTES, {"<|eot_id|>": 256}, added=added)
    assert tokenizer.encode("a<tool_call><|eot_id|>") == [97, 300, *b"<|eot_id|>"]
    assert tokenizer.encode("a<tool_call><|eot_id|>", allow_special=True) == [97, 300, 256]
    assert tokenizer.decode([97, 300, 256]) == "a<tool_call><|eot_id|>"
    assert tokenizer.special == {"<|eot_id|>": 256} and 299 not in tokenizer


def test_a_token_whose_id_is_in_doubt_is_refused_when_it_is_used() -> None:
    added = [
        AddedToken("<a>", 300, special=False, doubt="added_tokens.0.id is 300"),
        AddedToken("<b>", 301, doubt="no"),
    ]
    tokenizer = Tokenizer(BYTES, {}, added=added)
    assert tokenizer.encode("<b> a") == list(b"<b> a") and tokenizer.decode([300]) == "<a>"
    with pytest.raises(RequestError, match=r"holds '<a>', which cannot be used: added_tokens\.0\.id is 300"):
        tokenizer.encode("a <a>")
    with pytest.raises(TokenizerError, match="no"):
        tokenizer.special_id("<b>")


def test_neither_tiktoken_nor_regex_is_loaded_before_it_is_needed() -> None:
    code = """
import sys
from llama3.tokenizer import Tokenizer
def loaded(): return {"tiktoken", "regex"} & set(sys.modules)
tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, {}, fast=False)
assert not loaded()
tokenizer.encode("a")
assert loaded() == {"regex"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
