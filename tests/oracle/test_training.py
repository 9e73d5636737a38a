"""The training examples of the demo have the right tokens, and only tokens that the grammar leaves open count."""

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "weights" / "training"))

from corpus import Corpus  # noqa: E402
from tool_requests import ToolCorpus  # noqa: E402
from train import Encoder, load  # noqa: E402


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load(ROOT / "weights" / "demo" / "tokenizer.model"))


def counted(encoder: Encoder, content: str) -> list[str]:
    """The texts of the answer's tokens that count in the loss, with only_open."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    _, targets = encoder.dialogue(messages, shorten=False, only_open=True)
    return [encoder.tokenizer.decode([token]) for token in targets if token != -100]


def test_an_examples_tokens_decode_to_its_text(encoder: Encoder) -> None:
    tools, rng = ToolCorpus(Corpus()), random.Random(2)
    for _ in range(300):
        for message in tools.draw(rng):
            ids, free = encoder.call(message["content"])
            assert encoder.tokenizer.decode(ids) == message["content"] and len(free) == len(ids)


def test_up_to_its_first_value_a_call_is_split_as_the_tokenizer_splits_it(encoder: Encoder) -> None:
    """The grammar forces these tokens, and it forces the tokenizer's own."""
    begin = '{"name":"get_weather","parameters":{"city":"'
    ids, _ = encoder.call(begin + 'Quebec"}}')
    own = encoder.tokenizer.encode_ordinary(begin)
    assert ids[: len(own)] == own


def test_a_value_has_the_tokens_that_it_has_in_the_request_but_for_the_first(encoder: Encoder) -> None:
    ids, _ = encoder.call('["Quebec"]')
    in_request = encoder.tokenizer.encode_ordinary("in Quebec")
    n = len(in_request) - 2
    assert n > 1 and ids[-1 - n : -1] == in_request[-n:]


def test_only_what_the_grammar_leaves_open_counts(encoder: Encoder) -> None:
    pieces = "".join(counted(encoder, '{"name":"change","parameters":{"amount":85,"from":"euros","to":"yen"}}'))
    assert pieces == '{"change","amount":85,"from":"euros","yen"}}<|eot_id|>'
    assert "".join(counted(encoder, "It is cold.")) == "It is cold.<|eot_id|>"
