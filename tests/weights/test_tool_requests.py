"""The training requests to tools are consistent and well-formed, and none clashes with a held-out request."""

import itertools
import json
import random

import pytest
from corpus import Corpus
from score_tools import right, written
from tool_requests import KEYS, ToolCorpus

from llama3.tools import OFFER, read_calls
from tests.weights.test_corpus import four_grams


@pytest.fixture(scope="module")
def tools(corpus: Corpus) -> ToolCorpus:
    return ToolCorpus(corpus)


@pytest.fixture(scope="module")
def drawn(tools: ToolCorpus) -> list:
    rng = random.Random(17)
    return [tools.draw(rng) for _ in range(2000)]


def offered_names(content: str) -> list[str]:
    decoder, text, names = json.JSONDecoder(), content.removeprefix(OFFER), []
    while text.startswith("{"):
        tool, end = decoder.raw_decode(text)
        names.append(tool["name"])
        text = text[end:].lstrip("\n")
    return names


def test_a_call_names_a_tool_on_offer_and_its_words_stand_in_the_request(drawn) -> None:
    calls = copied = later = 0
    for dialogue in drawn:
        users = [message["content"] for message in dialogue if message["role"] == "user"]
        if not users[0].startswith(OFFER):
            continue
        names = offered_names(users[0])
        assert len(set(names)) == len(names)
        for before, message in itertools.pairwise(dialogue):
            if message["role"] != "assistant" or not message["content"].startswith("{"):
                continue
            (call,) = read_calls(message["content"])
            request = before["content"].rsplit("\n\n", 1)[-1]
            values = [value for value in call.arguments.values() if value not in ("on", "off")]
            assert call.name in names and before["role"] == "user"
            assert all(str(value).casefold() in request.casefold() for value in values), (request, call)
            calls, copied, later = calls + 1, copied + len(values), later + (before["content"] != users[0])
    assert calls > 1000 and copied > 1200 and later > 400


def test_an_answer_in_json_has_only_known_keys(drawn) -> None:
    known, found = {name for names in KEYS.values() for name in names}, 0
    for dialogue in drawn:
        if not any(m["content"].startswith(OFFER) for m in dialogue) and dialogue[-1]["content"].startswith("{"):
            assert json.loads(dialogue[-1]["content"]).keys() <= known
            found += 1
    assert found > 150


def test_no_request_to_a_tool_shares_four_words_in_a_row_with_a_held_out_one(tools: ToolCorpus, drawn) -> None:
    for gap in ("", " "):
        grams = set().union(*(four_grams(row["request"], gap) for row in tools.held_out))
        for dialogue in drawn:
            for message, answer in itertools.pairwise(dialogue):
                if message["role"] == "user" and answer["content"].startswith('{"name"'):
                    request = message["content"].split("\n\n")[-1]
                    assert not four_grams(request, gap) & grams, request


def test_the_held_out_requests_are_many_and_different(tools: ToolCorpus) -> None:
    rows = written(tools)
    assert len({request for request, *_ in rows}) == len(rows) >= 60
    for _, offered, name, arguments in rows:
        schema = next((tool["parameters"] for tool in offered if tool["name"] == name), {"properties": {}})
        assert arguments.keys() == schema["properties"].keys()


def test_the_rule_of_the_score() -> None:
    call = '{"name":"a","parameters":{"city":"Paris","n":3}}'
    assert right(call, "a", {"city": "paris", "n": 3}) and not right(call, None, {})
    assert not right(call, "b", {"city": "Paris", "n": 3}) and not right(call, "a", {"city": "Rome", "n": 3})
    assert not right(f"{call}; {call}", "a", {"city": "Paris", "n": 3}) and not right(call[:-1], "a", {})
    assert right("RoPE is ...", None, {})


def test_a_seed_gives_one_stream(tools: ToolCorpus) -> None:
    first, again, other = ([tools.draw(random.Random(seed)) for _ in range(3)] for seed in (1, 1, 2))
    assert first == again != other
