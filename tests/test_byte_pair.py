"""Splitting and merging agree with a merge that follows the definition, with Meta's pattern and with tiktoken."""

import random

import regex
from hypothesis import given
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama3 import plain
from llama3.byte_pair import PATTERN, merge, split
from tests import real_vocabulary as real

BYTES = {bytes([i]): i for i in range(256)}


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[bytes, int]:
    """Few letters and ranks in any order, so that merges get in each other's way far more than in a trained one."""
    tokens = draw(st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=40))
    return BYTES | {token.encode(): 256 + i for i, token in enumerate(tokens)}


@given(vocabularies(), st.text("abc", max_size=60))
def test_merge_joins_the_lowest_rank_first_and_the_leftmost_of_equals(ranks: dict[bytes, int], chunk: str) -> None:
    assert merge(chunk.encode(), ranks) == plain.merge(chunk.encode(), ranks)


@given(
    st.lists(st.sampled_from([b" ", b"th", b"e", b"\n", b"ing", b"\xe1\xbb", b"\x87", b"aaa"]), max_size=30).map(
        b"".join
    )
)
def test_merge_with_the_real_ranks_joins_in_the_same_order(chunk: bytes) -> None:
    ranks = real.tokenizer(False).ranks
    assert merge(chunk, ranks) == plain.merge(chunk, ranks)


@given(st.binary())
def test_tokens_of_any_bytes_join_to_these_bytes(data: bytes) -> None:
    tokenizer = real.tokenizer(False)
    assert tokenizer.decode_bytes(merge(data, tokenizer.ranks)) == data


@given(real.texts())
def test_chunks_join_to_the_text(text: str) -> None:
    assert "".join(split(text)) == text


def test_the_pattern_is_metas() -> None:
    assert MetaTokenizer.pat_str == PATTERN


def test_every_character_is_of_the_same_kind_to_regex_as_to_tiktoken() -> None:
    known = "".join(set(real.UNICODE) - set(real.unicode_differences()))
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        assert real.tiktoken_finds(kind, known) == "".join(regex.findall(kind, known))
    for ending in ("s", "t", "re", "ve", "m", "ll", "d"):  # of 'S and 'ſ, too
        assert real.tiktoken_finds(f"(?i:{ending})", known * len(ending)) == "".join(
            regex.findall(f"(?i:{ending})", known)
        )
    assert len(real.unicode_differences()) < 0.02 * len(known)


def test_split_by_hand_at_the_pattern_s_turning_points() -> None:
    assert split("I'm 1234 ") == ["I", "'m", " ", "123", "4", " "]
    assert split("I'm 12345, you'LL\n\n  see") == ["I", "'m", " ", "123", "45", ",", " you", "'LL", "\n\n", " ", " see"]
    assert split("a\x1cb\x85 c\u3000d") == [
        "a",
        "\x1cb",
        "\x85",
        " c",
        "\u3000d",
    ]  # U+001C is no white space, U+0085 is
    assert split("x  \n \t\n y !\r\n") == ["x", "  \n \t\n", " y", " !\r\n"]


def test_merging_a_long_chunk_does_not_cost_the_square_of_its_length() -> None:
    letters = "".join(random.Random(0).choices("abcdefgh", k=200_000)).encode()  # the square would be hours
    assert real.tokenizer(False).decode_bytes(merge(letters, real.tokenizer(False).ranks)) == letters
