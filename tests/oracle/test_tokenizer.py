"""Text gives the ids of Hugging Face's library `tokenizers`, which reads the same tokenizer.json."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as HuggingFace

from llama3.tokenizer import Tokenizer
from llama3.tokenizer_file import read_tokenizer_json
from tests import real_vocabulary as real
from tests.oracle.hugging_face import tokenizer, tokenizer_json


@cache
def ours() -> Tokenizer:
    ranks, special, whole_chunks, _ = read_tokenizer_json(tokenizer_json().encode())
    return Tokenizer(ranks, special, whole_chunks=whole_chunks, fast=False)


def theirs(texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer().encode_batch(texts, add_special_tokens=False)]


def test_tokenizer_json_gives_the_vocabulary_of_tokenizer_model() -> None:
    assert ours().ranks == real.tokenizer(True).ranks
    assert ours().special == real.tokenizer(True).special
    assert ours().whole_chunks


def test_every_token_s_text_has_the_same_ids() -> None:
    texts = [ours().token_bytes(token).decode(errors="replace") for token in range(128_256)]
    assert theirs(texts) == [ours().encode(text, allow_special=True) for text in texts]


def test_texts_of_random_tokens_have_the_same_ids() -> None:
    choose = random.Random(2)
    texts = [ours().decode([choose.randrange(128_256) for _ in range(8)]) for _ in range(10_000)]
    assert theirs(texts) == [ours().encode(text, allow_special=True) for text in texts]


def unicode_differences() -> str:
    """Characters that `tokenizers` and tiktoken classify differently: only one of their Unicode tables has them."""
    differ = set()
    for kind in ("L", "N"):
        known = normalizers.Replace(Regex(rf"\P{{{kind}}}"), "").normalize_str(real.UNICODE)
        differ |= set(known) ^ set(real.tiktoken_finds(rf"\p{{{kind}}}"))
    return "".join(differ)


YOUNG = frozenset(unicode_differences()) | frozenset(real.unicode_differences())


@settings(max_examples=100)
@given(texts=st.lists(real.texts().filter(lambda text: not YOUNG & set(text)), min_size=20, max_size=20))
def test_any_texts_have_the_same_ids(texts: list[str]) -> None:
    assert theirs(texts) == [ours().encode(text, allow_special=True) for text in texts]


@pytest.mark.parametrize("text", ["x", " ", "\n", "^", "ab", " \n", "é", "\u3000"], ids=ascii)
def test_a_text_repeated_10_001_times(text: str) -> None:
    assert theirs([text * 10_001 + "x"]) == [ours().encode(text * 10_001 + "x")]


@given(st.lists(st.integers(0, 128_255)))
def test_decoding_gives_the_same_text(tokens: list[int]) -> None:
    assert ours().decode(tokens) == tokenizer().decode(tokens, skip_special_tokens=False)


def test_a_file_that_does_not_ignore_merges_is_followed() -> None:
    merging = tokenizer_json().replace('"ignore_merges":true', '"ignore_merges":false')
    ranks, special, whole_chunks, _ = read_tokenizer_json(merging.encode())
    ours_merging, theirs_merging = Tokenizer(ranks, special, whole_chunks=whole_chunks), HuggingFace.from_str(merging)
    texts = [" Việt", *(ours().token_bytes(token).decode(errors="replace") for token in range(0, 128_000, 7))]
    ids = [ours_merging.encode(text) for text in texts]
    assert ids == [encoding.ids for encoding in theirs_merging.encode_batch(texts, add_special_tokens=False)]
    assert ids[0] == [11655, 26298, 83]
