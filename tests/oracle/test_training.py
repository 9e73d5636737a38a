"""What the demo is trained on, token by token: calls as the tokenizer cuts them, and only what is open counts."""

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
    """The pieces of an answer that count in the loss, if only what is open does."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    _, targets = encoder.dialogue(messages, shorten=False, only_open=True)
    return [encoder.tokenizer.decode([token]) for token in targets if token != -100]


def test_what_is_learnt_decodes_to_what_is_meant(encoder: Encoder) -> None:
    tools, rng = ToolCorpus(Corpus()), random.Random(2)
    for _ in range(300):
        for message in tools.draw(rng):
            ids, free = encoder.call(message["content"])
            assert encoder.tokenizer.decode(ids) == message["content"] and len(free) == len(ids)


def test_up_to_its_first_value_a_call_is_cut_as_the_tokenizer_cuts_it(encoder: Encoder) -> None:
    """These tokens the grammar brings, and it brings the tokenizer's own."""
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
