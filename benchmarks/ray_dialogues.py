"""How many turns of a dialogue are answered by the replica that holds its beginning, of four under Ray Serve.

    unshare --net sh -c 'ip link set lo up; exec python benchmarks/ray_dialogues.py [--out FILE.json]'

Many clients lead dialogues of ten turns at once, all with the same system message. Each answer repeats one word, which
belongs to the replica that has written it. The dialogues are known by their messages alone, and then by the header
`x-session-affinity`. Each replica has 4 slots, and its step sleeps 10 ms.
"""

import argparse
import json
import os
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import about_this_run  # the file beside this one
from ray_serve import ROOT, RUN, SECONDS, SLOTS, TOKEN, wait
from sleeping_model import sleeping_llama

REPLICAS, TURNS = 4, 10


def dialogue(port: int, name: str, with_header: bool, number: int) -> list[str]:
    """Lead one dialogue -> the words of the replicas that have answered its turns."""
    messages, words = [{"role": "system", "content": "Be brief."}], []
    headers = {"x-session-affinity": f"{name} {number}"} if with_header else {}
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{name} {number}, {turn}"})
        answer = ask(port, {"messages": messages, "max_tokens": 10 + number % 20}, headers)
        messages.append({"role": "assistant", "content": answer})
        words.append(answer.split()[0])
    return words


def ask(port: int, inputs: dict[str, Any], headers: dict[str, str]) -> str:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{RUN}", json.dumps(inputs).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        answer: str = json.load(reply)["result"]["response"]
    return answer


def load(settings: Any) -> Any:
    """Called in the replicas: a model that repeats a word of its process."""
    llama, model = sleeping_llama(settings.slots, SECONDS)
    model.token = word_of(llama.tokenizer, os.getpid())
    return llama


def word_of(tokenizer: Any, number: int) -> int:
    """A token that is a word with a space before it."""
    texts = {token: tokenizer.decode([token]) for token in range(256, tokenizer.vocab_size)}
    words = [token for token, text in texts.items() if text[:1] == " " and text[1:].isalpha()]
    return words[number % len(words)]


def dialogues(port: int, clients: int, with_header: bool) -> list[list[str]]:
    """Run all at once -> for each the words of the replicas that have answered its turns."""
    name = f"{clients} {with_header}"  # so that no dialogue is one of an earlier run
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(partial(dialogue, port, name, with_header), range(clients)))


def summary(found: list[list[str]]) -> dict[str, Any]:
    """The share of turns 2 to 10 that were answered where the turn before was, and how many dialogues began where."""
    stayed = [now == before for words in found for before, now in pairwise(words)]
    first = Counter(words[0] for words in found)
    return {"turns": len(stayed), "stayed": sum(stayed) / len(stayed), "dialogues_of_each": sorted(first.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=[8, 16, 32], nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'benchmarks'}"
    from llama3.ray.cluster import cluster
    from llama3.ray.serve import build
    from llama3.ray.settings import Settings

    port, runs = 8123, []
    with cluster("local"):
        from ray import serve

        serve.start(http_options={"port": port}, logging_config={"log_level": "ERROR"})
        settings = Settings(device="cpu", replicas=REPLICAS, slots=SLOTS, token=TOKEN, quiet=True)
        serve.run(build(settings, load))
        wait(port)
        seen = set()
        for clients in args.clients:
            for with_header in (False, True):
                found = dialogues(port, clients, with_header)
                seen |= {word for words in found for word in words}
                runs.append({"clients": clients, "header": with_header} | summary(found))
                print(json.dumps(runs[-1]), flush=True)
    if len(seen) < REPLICAS:
        raise SystemExit("two replicas have the same word: run again")
    if args.out:
        result = {"replicas": REPLICAS, "slots": SLOTS, "turns_of_a_dialogue": TURNS, "runs": runs}
        args.out.write_text(json.dumps(about_this_run() | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
