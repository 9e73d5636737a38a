"""Scores the demo checkpoint on the held-out requests to tools, with greedy decoding by this project's implementation.

    python weights/training/score_tools.py
    python weights/training/score_tools.py --drawn 100    # requests drawn as in training, to watch its progress
    python weights/training/score_tools.py --requests validation_tools.jsonl    # other requests, also for that

A request is answered right if the answer is one call of the expected tool, with exactly the expected arguments
(capitals are ignored). A question that no offered tool can answer is answered right by text.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from corpus import HERE, Corpus
from tool_requests import HELD_OUT, ToolCorpus

from llama3 import Llama
from llama3.tools import OFFER, read_calls


def folded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: folded(inner) for key, inner in value.items()}
    return value.casefold() if isinstance(value, str) else value


def right(text: str, name: str | None, arguments: dict[str, Any]) -> bool:
    try:
        calls = read_calls(text)
    except ValueError:
        return False
    if name is None:
        return not calls
    return [(call.name, folded(call.arguments)) for call in calls] == [(name, folded(arguments))]


def written(
    tools: ToolCorpus, file: Path = HELD_OUT
) -> list[tuple[str, list[dict[str, Any]], str | None, dict[str, Any]]]:
    """The requests of a file: (request, offered tools, name of the tool to call, its arguments) each."""
    return [
        (
            row["request"],
            [tools.plain(tool) if isinstance(tool, str) else tool for tool in row["offered"]],
            row["name"],
            row.get("arguments", {}),
        )
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())
    ]


def drawn(tools: ToolCorpus, n: int) -> list[tuple[str, list[dict[str, Any]], str | None, dict[str, Any]]]:
    """n requests drawn as in training, in the form of `written`."""
    rng, found = random.Random(99), []
    while len(found) < n:
        user, answer, *_ = (message for message in tools.with_a_tool(rng) if message["role"] != "system")
        decoder, text, offered = json.JSONDecoder(), user["content"].removeprefix(OFFER), []
        while text.startswith("{"):
            offer, end = decoder.raw_decode(text)
            offered.append(offer)
            text = text[end:].lstrip("\n")
        call = json.loads(answer["content"]) if answer["content"].startswith("{") else {}
        found.append((text, offered, call.get("name"), call.get("parameters", {})))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the demo checkpoint on requests to tools.")
    parser.add_argument("--model", type=Path, default=HERE.parent / "demo")
    parser.add_argument(
        "--requests", metavar="FILE", default=HELD_OUT.name, help="the file of requests, beside this one"
    )
    parser.add_argument("--drawn", type=int, metavar="N", help="N requests drawn as in training, instead")
    args = parser.parse_args()
    tools, llama, score = ToolCorpus(Corpus()), Llama.load(args.model), 0
    requests = drawn(tools, args.drawn) if args.drawn else written(tools, HERE / args.requests)
    for request, offered, name, arguments in requests:
        text = llama.chat([{"role": "user", "content": request}], tools=offered, temperature=0, max_tokens=120).text
        good = right(text, name, arguments)
        score += good
        if not good:
            print(f"WRONG  {request}\n       {text}\n       expected {name} {json.dumps(arguments)}")
    print(f"{score} of {len(requests)} = {score / len(requests):.1%}")


if __name__ == "__main__":
    main()
