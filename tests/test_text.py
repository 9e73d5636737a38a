"""Text is shown as early as possible, but never part of a character, nor anything from a stop string on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3.errors import RequestError
from llama3.text import TextStream, check_stops
from llama3.tokenizer import Tokenizer

# Each byte is a token, so that the text can be cut anywhere.
BYTES = Tokenizer({bytes([i]): i for i in range(256)}, {}, fast=False)


def pieces(text: str, stops: tuple[str, ...]) -> tuple[list[str], bool]:
    stream = TextStream(BYTES, stops)
    out = []
    for byte in text.encode():
        out.append(stream.push(byte))
        if stream.stopped:
            break
    return [*out, stream.flush()], stream.stopped


@given(st.text("ab\n€🙂", max_size=30), st.lists(st.text("ab\n€🙂", min_size=1, max_size=4), max_size=3))
def test_all_text_before_the_first_stop_string_comes_and_none_after(text, stops):
    out, stopped = pieces(text, tuple(stops))
    first_end = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not first_end:
        assert "".join(out) == text and not stopped
        return
    seen = text[: first_end[0]]  # the text when the first stop string became whole
    assert stopped and "".join(out) == seen[: min(at for stop in stops if (at := seen.find(stop)) >= 0)]


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    out, _ = pieces("a </b </s>", ("</s>",))
    assert out == ["a", " ", "", "", "</b", " ", "", "", "", "", ""]


@given(st.text(max_size=20))
def test_no_piece_holds_half_a_character(text):
    out, _ = pieces(text, ())
    assert "".join(out) == text
    assert sum(piece.count("\ufffd") for piece in out) == text.count("\ufffd")


def test_half_a_character_at_the_end_is_shown_as_replaced():
    stream = TextStream(BYTES)
    assert [stream.push(byte) for byte in "é".encode()[:1]] == [""]
    assert stream.flush() == "\ufffd"


def test_an_id_beyond_the_vocabulary_has_no_text():
    assert TextStream(BYTES).push(256) == ""


def test_without_a_tokenizer_there_is_no_text():
    stream = TextStream(None)
    assert stream.push(5) == stream.flush() == ""
    with pytest.raises(RequestError, match="has none"):
        TextStream(None, ("x",))


@pytest.mark.parametrize("stop", [None, "ab", ["a", "b"], ("a",), {"a"}, {"a": 1}.keys(), np.array(["a", "b"])[0], []])
def test_stop_strings_may_come_in_any_collection(stop):
    assert set(check_stops(stop)) == ({stop} if isinstance(stop, str) else set(stop or ()))


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1], ["x"] * 17, 5, b"x", {"x": 1}])
def test_stop_strings_that_make_no_sense_are_refused(stop):
    with pytest.raises(RequestError, match=r"^stop "):
        check_stops(stop)
