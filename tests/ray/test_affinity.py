"""Which replica a request goes to: dialogues stay on one, by header or by their messages, and load is shared out."""

import random
from collections import Counter
from typing import Any

import pytest

from llama3.ray.affinity import MOST_KEYS, Holders, keys_of


def turn(dialogue: int, n: int, **more: Any) -> dict[str, Any]:
    """The body of a dialogue's turn n, from 0. All dialogues have the same system message."""
    messages = [{"role": "system", "content": "Be brief."}]
    for i in range(n):
        messages += [
            {"role": "user", "content": f"{dialogue}, {i}"},
            {"role": "assistant", "content": f"answer {dialogue}, {i}"},
        ]
    return {"messages": [*messages, {"role": "user", "content": f"{dialogue}, {n}"}], **more}


@pytest.mark.parametrize("with_header", [False, True])
def test_ten_turn_dialogues_stay_on_one_of_four_replicas(with_header: bool):
    dice, holders, slots = random.Random(1), Holders(), 4
    loads = dict.fromkeys("abcd", 0)
    dialogues = dict.fromkeys(range(40), 0)  # dialogue -> its next turn
    homes: dict[int, str] = {}
    running: list[str] = []
    stayed = followed = 0
    while dialogues:
        while len(running) > dice.randint(2, 9):
            loads[running.pop(dice.randrange(len(running)))] -= 1
        dialogue = dice.choice(list(dialogues))
        headers = [(b"x-session-affinity", f"s{dialogue}".encode())] if with_header else []
        keys = keys_of(headers, turn(dialogue, dialogues[dialogue]))
        replica = holders.choose(keys, loads, slots)
        holders.put(keys, replica)
        if dialogues[dialogue]:
            followed += 1
            stayed += replica == homes[dialogue]
        homes[dialogue] = replica
        loads[replica] += 1
        running.append(replica)
        dialogues[dialogue] += 1
        if dialogues[dialogue] == 10:
            del dialogues[dialogue]
    assert followed == 9 * 40
    assert stayed >= 0.95 * followed
    assert len(set(homes.values())) == 4


def test_new_dialogues_are_shared_out_evenly_though_they_begin_alike():
    holders, loads = Holders(), dict.fromkeys("abcd", 0)
    for dialogue in range(40):
        keys = keys_of([], turn(dialogue, 0))
        replica = holders.choose(keys, loads, 4)
        holders.put(keys, replica)
        loads[replica] += 1
    assert set(loads.values()) == {10}


def test_a_full_or_dead_holder_is_passed_over():
    holders, keys = Holders(), keys_of([], turn(1, 3))
    holders.put(keys_of([], turn(1, 2)), "a")
    assert holders.choose(keys, {"a": 3, "b": 0}, 4) == "a"
    assert holders.choose(keys, {"a": 4, "b": 0}, 4) == "b"
    assert holders.choose(keys, {"b": 9}, 4) == "b"
    assert holders.choose(keys, {"a": 0, "b": 1}, 4, avoid=["a"]) == "b"
    assert holders.choose(keys, {"a": 0}, 4, avoid=["a"]) == "a"


def test_two_ingresses_agree_about_a_session():
    loads = dict.fromkeys("abcd", 0)
    keys = [keys_of([(b"x-session-affinity", str(n).encode())], {}) for n in range(200)]
    first, second = ([Holders().choose(key, loads, 4) for key in keys] for _ in range(2))
    assert first == second
    assert min(Counter(first).values()) > 20


def test_keys_are_those_of_the_earlier_turns():
    first, second = keys_of([], turn(1, 0)), keys_of([], turn(1, 1))
    assert first[0] in second and second[0] not in first
    assert keys_of([], {"inputs": turn(1, 1)}) == second  # a Worker's binding
    assert keys_of([], {"input": turn(1, 1)["messages"]}) == second  # Responses
    assert first[0] not in keys_of([], turn(1, 1, lora="other"))
    assert first[0] not in keys_of([], turn(2, 1))


@pytest.mark.parametrize(
    "body", [None, 7, [], {}, {"prompt": "hi"}, {"messages": []}, {"messages": 7}, {"input": "hi"}]
)
def test_other_requests_have_no_keys(body: Any):
    assert keys_of([], body) == []


def test_the_oldest_are_forgotten():
    holders = Holders()
    for n in range(MOST_KEYS + 10):
        holders.put([str(n)], "a")
    assert len(holders.replicas) == MOST_KEYS and "9" not in holders.replicas and "10" in holders.replicas
