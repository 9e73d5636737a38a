"""Requests to tools, and questions to be answered as JSON: dialogues drawn from `tools.toml` and from the subjects.

    python tool_requests.py 10     # prints ten of them

Each time a tool is drawn, so are its name, its description, the names of its parameters and the tools beside it. Some
tools and a third of the values are invented. So the model has to learn to read the offered tools, and to copy.
"""

import json
import random
import re
import sys
import tomllib
from typing import Any

from corpus import ENDINGS, HERE, Corpus, Message, four_grams

from llama3.tools import read_tools, with_tools

HELD_OUT, VALIDATION = HERE / "held_out_tools.jsonl", HERE / "validation_tools.jsonl"
KEYS = {  # the keys of an answer in JSON, by what their value is
    "answer": ("answer", "response", "text", "explanation", "reply", "description", "definition"),
    "short": ("summary", "short", "in_short", "short_answer", "title"),
    "name": ("subject", "topic", "name", "term", "about", "concept"),
    "known": ("known", "is_known", "about_llama3", "on_topic"),
    "words": ("keywords", "tags", "words"),
}


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class ToolCorpus:
    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.file = tomllib.loads((HERE / "tools.toml").read_text(encoding="utf-8"))
        self.words: dict[str, list[str]] = self.file["words"]
        self.held_out = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
        validation = map(json.loads, VALIDATION.read_text(encoding="utf-8").splitlines())
        self.grams = {gram for row in (*self.held_out, *validation) for gram in four_grams(row["request"])}

    # -- tools ---------------------------------------------------------------------------------------------------

    def plain(self, name: str) -> dict[str, Any]:
        """A tool with the first name and texts of the file, as it is offered with the held-out requests."""
        tool = next(tool for tool in self.file["tool"] if tool["names"][0] == name)
        return self.offer(tool, lambda options: options[0], {key: key for key in tool["parameters"]})

    @staticmethod
    def offer(tool: dict[str, Any], choose: Any, keys: dict[str, str]) -> dict[str, Any]:
        properties = {}
        for key, parameter in tool["parameters"].items():
            enum = {"enum": parameter["enum"]} if "enum" in parameter else {}
            properties[keys[key]] = {"type": parameter["type"], **enum, "description": choose(parameter["about"])}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {"name": choose(tool["names"]), "description": choose(tool["about"]), "parameters": schema}

    def varied(self, rng: random.Random, tool: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """A tool with drawn names and texts, and the drawn names of its parameters."""
        keys: dict[str, str] = {}
        for key, parameter in tool["parameters"].items():
            free = [name for name in parameter["names"] if name not in keys.values()]
            keys[key] = key if key in free and rng.random() < 0.6 else rng.choice(free)
        first = rng.random() < 0.5
        return self.offer(tool, lambda options: options[0] if first else rng.choice(options), keys), keys

    def value(self, rng: random.Random, kind: str) -> Any:
        if kind == "number":
            return rng.choice((rng.randint(1, 20), 10 * rng.randint(1, 99), rng.randint(1, 2000)))
        if kind == "minutes":
            return rng.randint(1, 90)
        if kind == "sides":
            return rng.choice((4, 6, 8, 10, 12, 20, 100, rng.randint(2, 99)))
        if kind == "time":
            return f"{rng.randint(1, 23)}:{rng.choice(('00', '15', '30', '45', f'{rng.randint(0, 59):02}'))}"
        if kind == "expression":
            a, b = (rng.choice((rng.randint(1, 99), rng.randint(1, 999))) for _ in range(2))
            return f"{a} {rng.choice('+-*/')} {b}" + (
                f" {rng.choice('+-*/')} {rng.randint(1, 99)}" * (rng.random() < 0.2)
            )
        if kind == "state" or rng.random() < 0.6:
            return rng.choice(self.words[kind])
        if kind in ("city", "person", "artist", "company"):
            return self.invented_name(rng) + (" " + self.invented_name(rng)) * (rng.random() < 0.1)
        count = 1 if kind in ("word", "item", "language", "cuisine", "currency", "room") else rng.randint(1, 5)
        return " ".join(self.any_word(rng) for _ in range(count))

    def any_word(self, rng: random.Random) -> str:
        """A word of the corpus, or the beginning of one and the end of another, so any tokens may be neighbours."""
        first, last = rng.sample(self.corpus.words, 2)
        return (first if rng.random() < 0.5 else first[: rng.randint(1, 5)] + last[-rng.randint(2, 5) :]).lower()

    def invented_name(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return self.any_word(rng).capitalize()
        syllables = [rng.choice("bdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))]
        return ("".join(syllables)).capitalize() + rng.choice(ENDINGS)

    def known_request(
        self, rng: random.Random, tool: dict[str, Any], keys: dict[str, str]
    ) -> tuple[str, dict[str, Any], list[Message]]:
        """The request, the arguments, and the messages after the call: the tool's result and the answer, if any."""
        values = {key: self.value(rng, parameter["words"]) for key, parameter in tool["parameters"].items()}
        request = rng.choice(tool["requests"])
        if " | " in request:
            values["state"], request = request.split(" | ")
        request = self.as_typed(rng, request).format(**values)
        if rng.random() < 0.12:
            request = request.lower()
            values = {key: value.lower() if isinstance(value, str) else value for key, value in values.items()}
        request = self.in_passing(rng, request)
        then: list[Message] = []
        if "results" in tool:
            more = {"n": rng.randint(-9, 38), "sky": rng.choice(self.words["sky"]), "time": self.value(rng, "time")}
            then = [
                {"role": "tool", "content": rng.choice(tool["results"]).format(**values, **more)},
                {"role": "assistant", "content": rng.choice(tool["answers"]).format(**values, **more)},
            ]
        return request, {keys[key]: value for key, value in values.items()}, then

    def in_passing(self, rng: random.Random, request: str) -> str:
        """The request, now and then with a sentence before or after it."""
        around = self.file["around"]
        if rng.random() < 0.15:
            request = request.rstrip("?.! ")
        elif rng.random() < 0.15:
            request += " " + rng.choice(around["after"])
        if rng.random() < 0.25:
            before = rng.choice(around["before"])
            lower = before[-1] in ",:" and rng.random() < 0.7 and not request.startswith("I ")
            request = f"{before} {request[0].lower() + request[1:] if lower else request}"
        return request

    def as_typed(self, rng: random.Random, request: str) -> str:
        """The request, in half of the cases with small changes outside its gaps."""
        if rng.random() < 0.5:
            return request
        gaps = re.findall(r"{\w+}", request)
        numbered = request
        for i, gap in enumerate(gaps):
            numbered = numbered.replace(gap, f"@{i}", 1)  # a mark that no small change touches
        changed = self.corpus.noise.apply(rng, numbered)
        for i, gap in enumerate(gaps):
            if changed.count(f"@{i}") != 1:
                return request
            changed = changed.replace(f"@{i}", gap)
        return changed

    def invented_tool(self, rng: random.Random) -> tuple[dict[str, Any], str, str]:
        """A tool that exists nowhere, with its verb and its noun."""
        made = self.file["invented"]
        verb, noun = rng.choice(made["verbs"]), rng.choice(made["nouns"])
        keys = rng.sample(made["parameters"], rng.choice((1, 1, 2)))
        properties = {
            key: {"type": rng.choice(("integer", "string", "string")), "description": f"The {key}"} for key in keys
        }
        name = rng.choice((f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}"))
        schema = {"type": "object", "properties": properties, "required": keys}
        return {"name": name, "description": f"{verb.capitalize()} the {noun}", "parameters": schema}, verb, noun

    def invented_request(
        self, rng: random.Random, offer: dict[str, Any], verb: str, noun: str
    ) -> tuple[str, dict[str, Any]]:
        kinds = ("city", "person", "topic", "item", "room", "word")
        arguments = {
            key: self.value(rng, "number" if of["type"] == "integer" else rng.choice(kinds))
            for key, of in offer["parameters"]["properties"].items()
        }
        said = " and ".join(
            rng.choice(("{k} {v}", "{v} as {k}", "the {k} {v}")).format(k=k, v=v) for k, v in arguments.items()
        )
        request = rng.choice(self.file["invented"]["requests"]).format(verb=verb, noun=noun, a=said)
        return self.in_passing(rng, request[0].upper() + request[1:]), arguments

    # -- dialogues -----------------------------------------------------------------------------------------------

    def with_a_tool(self, rng: random.Random) -> list[Message]:
        """A dialogue with one to three tools and one to four turns: calls, some with a result, and other questions.

        The offer of the tools is by far the longest part, so several requests after one offer make better use of it.
        """
        offers: list[dict[str, Any]] = []
        asks: list[Any] = []  # for each offer, a function that draws (request, arguments, messages after the call)
        for tool in rng.sample(self.file["tool"], rng.choices((1, 2, 3), (40, 50, 10))[0]):
            if rng.random() < 0.15:
                offer, verb, noun = self.invented_tool(rng)
                asks.append(lambda o=offer, v=verb, n=noun: (*self.invented_request(rng, o, v, n), []))
            else:
                offer, keys = self.varied(rng, tool)
                asks.append(lambda t=tool, k=keys: self.known_request(rng, t, k))
            offers.append(offer)
        if len({offer["name"] for offer in offers}) < len(offers):
            return self.with_a_tool(rng)
        messages: list[Message] = []
        for _ in range(rng.choices((1, 2, 3, 4), (40, 25, 20, 15))[0]):
            if rng.random() < 0.25:
                turn = self.corpus.dialogue(rng, 1)
                late = bool(messages)  # only the first message may be a system text
                fits = not any((late and m["role"] == "system") or self.foreign(m["content"]) for m in turn)
            else:
                number = rng.randrange(len(offers))
                request, arguments, then = asks[number]()
                call = compact({"name": offers[number]["name"], "parameters": arguments})
                turn = [{"role": "user", "content": request}, {"role": "assistant", "content": call}]
                turn += then if rng.random() < 0.25 else []
                fits = not self.clashes(request)
            messages += turn if fits else []
        if not messages:
            return self.with_a_tool(rng)
        return [dict(message) for message in with_tools(messages, read_tools(offers))]

    @staticmethod
    def foreign(content: str) -> bool:
        """Whether a question was declined that a tool might answer. Such a dialogue would teach the wrong thing."""
        return bool(re.search(r"outside my subject|cannot help with that|know nothing about that", content))

    def as_json(self, rng: random.Random) -> list[Message]:
        """A question whose answer is an object. The key determines what its value is."""
        subject = rng.choice(self.corpus.technical)
        kind = rng.choice([kind for kind in ("what", "why", "how") if kind in subject.answers])
        question = self.corpus.question(rng, subject, kind)
        keys = [kind for kind in KEYS if rng.random() < 0.4]
        if not {"answer", "short"} & set(keys):
            keys.append(rng.choice(("answer", "short")))
        rng.shuffle(keys)
        values: dict[str, Any] = {
            "answer": rng.choice(subject.answers[kind]),
            "short": rng.choice(subject.answers.get("short", subject.answers[kind])),
            "name": subject.names[0].text,
            "known": True,
            "words": [name.text for name in subject.names[: rng.randint(1, 3)]],
        }
        answer = compact({rng.choice(KEYS[key]) if rng.random() < 0.7 else KEYS[key][0]: values[key] for key in keys})
        if self.corpus.held_out.clashes(answer):
            return self.as_json(rng)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def clashes(self, request: str) -> bool:
        """Whether it shares four words in a row with a held-out or validation request, or with a held-out question."""
        return not self.grams.isdisjoint(four_grams(request)) or self.corpus.held_out.clashes(request)

    def repeated(self, rng: random.Random) -> list[Message]:
        """Words to be repeated, as text or as a list: an exercise in copying, of which a call has only a word or two.

        Without these dialogues, the model made up values from the right letters. A word after a space and the same word
        after a quotation mark are different tokens.
        """
        kinds = ("city", "person", "artist", "company", "word", "item", "topic", "number", "time", "query")
        values = [str(self.value(rng, rng.choice(kinds))) for _ in range(rng.randint(2, 10))]
        if rng.random() < 0.25:
            text = " ".join(values)
            request, answer = rng.choice(("Repeat: {x}", "Say again: {x}", "Repeat after me: {x}")), text
        else:
            text = ", ".join(values)
            request, answer = rng.choice(("List {x}", "As a list: {x}", "Make a list of {x}")), compact(values)
        if self.clashes(text):
            return self.repeated(rng)
        return [{"role": "user", "content": request.format(x=text)}, {"role": "assistant", "content": answer}]

    def draw(self, rng: random.Random) -> list[Message]:
        kind = rng.choices((self.with_a_tool, self.as_json, self.repeated), (50, 10, 40))[0]
        return kind(rng)


if __name__ == "__main__":
    tools, rng = ToolCorpus(Corpus()), random.Random(1)
    for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        print(f"--- {number}")
        print("\n".join(f"{m['role']}: {m['content']}" for m in tools.draw(rng)))
