"""Added tokens with any fields give the ids of Hugging Face's library `tokenizers`, or are refused by their field.

Random tokenizer.json files, 2,000 in the slow test, are read by both. The vocabulary is small, and the names and texts
are made of few pieces, so that names overlap each other, base tokens, words and white space.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from llama3.byte_pair import split
from llama3.errors import Llama3Error
from llama3.tokenizer import Tokenizer
from llama3.tokenizer_file import read_tokenizer_json
from tests.test_tokenizer_file import RANKS, as_json

PIECES = [
    "<",
    ">",
    "|",
    "a",
    "ab",
    "abc",
    "xyz",
    " a",
    " ",
    "\n\n",
    "_",
    "7",
    "é",
    "e\u0301",
    "例",
    "\x1c",
    "\x85",
    "Ⅷ",
    "Ġa",
]
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
FIRST = len(RANKS)  # the id of the first token after those of text

names = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join) | st.sampled_from(
    ["<|eot_id|>", "[PAD]", "<tool_call>"]
)
tokens = st.fixed_dictionaries({"content": names, **{flag: st.booleans() for flag in FLAGS}})


@st.composite
def files(draw: Any) -> dict[str, Any]:
    """A tokenizer.json. Ids follow each other, except those behind a gap; some tokens are in model.vocab as well.

    Among these is no control token that is a whole chunk of text: `tokenizers` would take it from any text.
    """
    content = as_json()
    vocab, added, token = content["model"]["vocab"], [], FIRST
    content["model"]["ignore_merges"] = draw(st.booleans())
    for entry in draw(st.lists(tokens, max_size=6, unique_by=lambda entry: entry["content"])):
        if entry["content"] in vocab:
            special = entry["special"] and entry["content"] != "xyz"  # no merge makes it
            added.append(entry | {"id": vocab[entry["content"]], "special": special})
            continue
        token += draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 39]))
        added.append(entry | {"id": token})
        chunk = split(entry["content"]) == [entry["content"]]
        if not (chunk and entry["special"]) and draw(st.sampled_from([True, False, False])):
            vocab[entry["content"]] = token
        token += 1
    if added and draw(st.sampled_from([True, False, False])):
        added.append(draw(st.sampled_from(added)))
    return content | {"added_tokens": added, "truncation": None, "padding": None, "post_processor": None}


def texts(content: dict[str, Any]) -> st.SearchStrategy[str]:
    found = [token["content"] for token in content["added_tokens"]]
    return st.lists(st.sampled_from(PIECES + 3 * found), max_size=12).map("".join)


@settings(max_examples=100)
@given(st.data())
def test_any_added_tokens_give_the_ids_of_tokenizers_or_are_refused_by_field(data: st.DataObject) -> None:
    check(data)


@pytest.mark.slow
@settings(max_examples=2_000)
@given(st.data())
def test_2_000_files_with_added_tokens_give_the_ids_of_tokenizers(data: st.DataObject) -> None:
    check(data)


def check(data: st.DataObject) -> None:
    content = data.draw(files())
    drawn = data.draw(st.lists(texts(content), min_size=4, max_size=4))
    try:
        ranks, special, whole_chunks, added = read_tokenizer_json(json.dumps(content).encode())
        ours = Tokenizer(ranks, special, added=added, whole_chunks=whole_chunks, fast=False)
    except Llama3Error as error:
        assert any(field in str(error) for field in ("added_tokens.", "added token", "rank ", "model.merges")), error
        return
    reference = HuggingFace.from_str(json.dumps(content))
    for guarded in (False, True):
        reference.encode_special_tokens = guarded  # the names of control tokens remain text
        for text in drawn:
            try:
                ids = ours.encode(text, allow_special=not guarded)
            except Llama3Error as error:
                assert "added_tokens." in str(error)
                continue
            assert ids == reference.encode(text, add_special_tokens=False).ids, (text, guarded, content["added_tokens"])
