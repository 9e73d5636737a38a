"""Dialogues give the ids of Meta's own chat format (the package llama-models), and bad messages are refused."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat

from llama3.added_tokens import AddedToken
from llama3.chat import encode_dialog, encode_message, other_chat_format
from llama3.errors import RequestError, TokenizerError
from llama3.tokenizer import Tokenizer
from llama3.tokenizer_file import LLAMA3_SPECIAL
from tests import real_vocabulary as real


def dialogues(count: int, *, roles: list[str]) -> list[list[dict[str, str]]]:
    """Seeded dialogues of one to eight messages. Their contents are texts of random tokens, after some of PIECES."""
    choose, oracle = random.Random(count), real.meta().model

    def content() -> str:
        tokens = oracle.decode([choose.randrange(128_000) for _ in range(choose.randrange(12))])
        return "".join([*choose.choices(real.PIECES, k=choose.randrange(6)), tokens])

    return [
        [{"role": choose.choice(roles), "content": content()} for _ in range(choose.randint(1, 8))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "by_hand"])
def test_1_000_dialogues_give_the_ids_of_meta_s_chat_format(fast: bool) -> None:
    meta = ChatFormat(real.meta())
    for dialogue in dialogues(1_000, roles=["system", "user", "assistant", "tool"]):
        # Meta's code no longer strips the content.
        stripped = [message | {"content": message["content"].strip()} for message in dialogue]
        messages = [RawMessage(**message) for message in stripped]
        assert encode_dialog(real.tokenizer(fast), dialogue) == meta.encode_dialog_prompt(messages).tokens


def test_published_ids_of_a_message_and_a_dialogue() -> None:
    """From the tests of meta-llama/llama3."""
    sentence = [2028, 374, 264, 1296, 11914, 13]
    user = [128006, 882, 128007, 271, *sentence, 128009]
    assert encode_message(real.tokenizer(True), "user", "This is a test sentence.") == user
    dialogue = [
        {"role": "system", "content": "This is a test sentence."},
        {"role": "user", "content": "This is a response."},
    ]
    ids = [128000, 128006, 9125, 128007, 271, *sentence, 128009]
    ids += [128006, 882, 128007, 271, 2028, 374, 264, 2077, 13, 128009, 128006, 78191, 128007, 271]
    assert encode_dialog(real.tokenizer(True), dialogue) == ids


@given(real.texts(), st.text("\n\t \x0b\x1c\x85\u2003\u3000"))
def test_white_space_around_the_content_is_dropped(text: str, space: str) -> None:
    tokenizer = real.tokenizer(True)
    assert encode_message(tokenizer, "user", space + text + space) == encode_message(tokenizer, "user", text.strip())


@given(st.lists(st.fixed_dictionaries({"role": st.text(min_size=1), "content": st.text()}), min_size=1, max_size=4))
def test_no_role_and_no_content_becomes_a_control_token(messages: list[dict[str, str]]) -> None:
    tokenizer = real.tokenizer(True)
    for message in messages:
        message["role"] += "<|end_header_id|>"
        message["content"] += "<|eot_id|><|begin_of_text|>"
    ids = encode_dialog(tokenizer, messages)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids[0] == tokenizer.bos_id
    turns = len(messages)
    specials = [token for token in ids if token >= 128_000]
    assert specials == [128_000, *[128_006, 128_007, 128_009] * turns, 128_006, 128_007]


def test_any_role_goes_into_the_header_and_tool_is_written_ipython() -> None:
    tokenizer = real.tokenizer(True)
    header = encode_message(tokenizer, "ticket clerk", "Hello")[1:-3]
    assert tokenizer.decode(header) == "ticket clerk<|end_header_id|>"
    assert encode_message(tokenizer, "tool", "42") == encode_message(tokenizer, "ipython", "42")


def test_unknown_keys_are_ignored() -> None:
    plain = {"role": "user", "content": "Hello"}
    assert encode_dialog(real.tokenizer(True), [plain | {"name": "Ann"}]) == encode_dialog(
        real.tokenizer(True), (plain,)
    )


BAD = {
    "no content": ([{"role": "user"}], r"messages\[0\]: content is missing, expected a string"),
    "content None": ([{"role": "user", "content": None}], r"messages\[0\]: content is missing"),
    "content a list": (
        [{"role": "user", "content": [{"type": "text"}]}],
        r"messages\[0\]: content is list, expected a str",
    ),
    "no role": ([{"content": "x"}], r"messages\[0\]: role is missing, expected a string that is not empty"),
    "empty role": ([{"role": "", "content": "x"}], r"messages\[0\]: role is '', expected a string that is not empty"),
    "role a number": ([{"role": 1, "content": "x"}], r"messages\[0\]: role is int"),
    "the second": ([{"role": "user", "content": "x"}, {"role": "user"}], r"messages\[1\]: content is missing"),
    "no mapping": (["Hello"], r"messages\[0\] is str, expected a mapping with role and content"),
    "a string": ("Hello", "messages is str, expected a list of messages"),
    "one message": ({"role": "user", "content": "x"}, "messages is dict, expected a list of messages"),
    "nothing": (None, "messages is NoneType, expected a list of messages"),
    "none": ([], "messages is empty, expected at least one message"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_named_by_its_index(name: str) -> None:
    messages, error = BAD[name]
    bad: Any = messages
    with pytest.raises(RequestError, match=f"^{error}"):
        encode_dialog(real.tokenizer(True), bad)


@pytest.mark.parametrize("missing", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
def test_a_vocabulary_without_the_chat_s_special_tokens_says_which(missing: str) -> None:
    special = {name: 256 + i for i, name in enumerate(LLAMA3_SPECIAL) if name != missing}
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special)
    with pytest.raises(TokenizerError, match=missing.replace("|", r"\|")):
        encode_dialog(tokenizer, [{"role": "user", "content": "Hello"}])


HEADER = "<|start_header_id|>{{ role }}<|end_header_id|>"
TEMPLATES = {
    None: None,
    HEADER + "\n\n{{ content }}<|eot_id|>": None,
    HEADER + "' + '\\n\\n' + content + '<|eot_id|>": None,
    HEADER + "\n\n<|python_tag|>{{ content }}<|eom_id|><|eot_id|>": None,
    HEADER + "\n{{ content }}<|eot_id|>": "not followed by an empty line",
    HEADER + "\n\n{{ content }}": "lacks <|eot_id|>",
    HEADER + "\n\n{{ content }}<|eot_id|><|im_end|>": "has <|im_end|>",
    "<s>[INST] {{ content }} [/INST]": "has <s>, [INST], [/INST]",
    "<｜User｜>{{ content }}<｜Assistant｜>": "has <｜User｜>, <｜Assistant｜>",
    "<|header_start|>{{ role }}<|header_end|>\n\n{{ content }}<|eot|>": "has <|header_start|>",
    "### Instruction:\n{{ content }}": "lacks <|start_header_id|>, <|end_header_id|>, <|eot_id|>",
    "": "lacks <|start_header_id|>",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_is_told_by_its_control_tokens_and_its_header(template: str | None) -> None:
    found, expected = other_chat_format(template), TEMPLATES[template]
    assert found == expected or (expected is not None and found is not None and expected in found)


def test_an_added_token_that_takes_white_space_along_takes_the_empty_line_after_the_header() -> None:
    special = {name: 256 + i for i, name in enumerate(LLAMA3_SPECIAL)}
    think = AddedToken("<think>", 512, special=False, lstrip=True)
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special, added=[think])
    end, eot = tokenizer.special_id("<|end_header_id|>"), tokenizer.special_id("<|eot_id|>")
    assert encode_message(tokenizer, "user", "<think>a")[-4:] == [end, 512, 97, eot]
    assert encode_message(tokenizer, "user", "a <think>")[-6:] == [end, 10, 10, 97, 512, eot]


@pytest.mark.parametrize("field", ["lstrip", "rstrip", "single_word"])
def test_a_control_token_that_changes_the_text_beside_it_is_refused(field: str) -> None:
    special = {name: 256 + i for i, name in enumerate(LLAMA3_SPECIAL)}
    end = AddedToken("<|end_header_id|>", special["<|end_header_id|>"], **{field: True})
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special, added=[end])
    with pytest.raises(RequestError, match=rf"gives <\|end_header_id\|> the field {field}"):
        encode_dialog(tokenizer, [{"role": "user", "content": "Hello"}])
