"""The demo's corpus: from the text files in this folder to an endless, seeded stream of dialogues.

    subjects/*.md      one subject a file: its names, its answers, the questions that people ask about it
    comparisons.md     two subjects side by side
    templates.md       questions with a gap for a subject's name
    follow_ups.md      second questions ("And why?")
    system.md          system texts that change the answer, and some that do not
    small_changes.md   polite openings, synonyms and other small changes to a question
    prose.md           running text, for plain continuation
    held_out.tsv       held-out questions, which no training text may resemble

`python weights/training/corpus.py 20` prints 20 of the dialogues.
"""

import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from noise import Noise

HERE = Path(__file__).parent
KINDS = ("what", "why", "how")
ENDINGS = ("", "", "n", "s", "r", "l", "x", "th", "ck", "nd", "m", "t")
PLAIN = {  # the shortest questions; see Corpus.plain
    "what": (
        "what {is} {x}",
        "what {is} {bare}",
        "explain {bare}",
        "{bare}",
        "what {does} {bare} mean",
        "tell me about {bare}",
        "what {does} {bare} stand for",
        "and {bare}",
    ),
    "why": ("why {bare}", "what {is} {bare} for", "why do we need {bare}"),
    "how": ("how {does} {bare} work", "how does {bare} work", "{bare}, how"),
}
Message = dict[str, str]


def sections(path: Path) -> dict[str, list[str]]:
    """The non-empty lines of a Markdown file by `## Title` (in lower case), without list dashes.

    The key "" has the lines before the first title.
    """
    found: dict[str, list[str]] = {"": []}
    title = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:].strip().lower()
            found.setdefault(title, [])
        elif line.strip():
            found[title].append(line.strip().removeprefix("- "))
    return found


@dataclass(frozen=True)
class Name:
    """A subject's name inside a sentence: "the KV cache", "logits" (plural)."""

    text: str
    plural: bool

    @classmethod
    def parse(cls, text: str) -> "Name":
        return cls(text.removesuffix("(pl)").strip(), text.endswith("(pl)"))

    def fill(self, template: str) -> str:
        bare = re.sub(r"^(the|a|an) ", "", self.text)
        number = ("are", "do", "they", "work") if self.plural else ("is", "does", "it", "works")
        return template.format(x=self.text, bare=bare, **dict(zip(("is", "does", "it", "works"), number, strict=True)))


@dataclass(frozen=True)
class Subject:
    """One file of `subjects/`."""

    id: str
    names: tuple[Name, ...]
    keys: tuple[str, ...]  # an answer on this subject contains one of them
    weight: float  # how often it is drawn, relative to 1
    technical: bool  # whether the templates apply to it
    answers: dict[str, tuple[str, ...]]  # by kind; "short" has answers of one sentence
    questions: dict[str, tuple[str, ...]]  # by kind
    that: tuple[str, ...]  # statements about it that do not name it: "the answers differ each time"
    to: tuple[str, ...]  # purposes that it serves: "bring variety into the text"
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)  # fillers for {gaps} in its questions

    @classmethod
    def read(cls, path: Path) -> "Subject":
        parts = sections(path)
        head = dict(line.split(": ", 1) for line in parts[""] if not line.startswith("# "))
        names = tuple(Name.parse(name.strip()) for name in head.get("names", "").split(";") if name.strip())
        answers = {kind: tuple(parts[kind]) for kind in (*KINDS, "short", "named") if kind in parts}
        questions = {kind: tuple(parts[f"ask {kind}"]) for kind in KINDS if f"ask {kind}" in parts}
        words = {
            title.removeprefix("words: "): tuple(word.strip() for line in lines for word in line.split(","))
            for title, lines in parts.items()
            if title.startswith("words: ")
        }
        keys = tuple(key.strip().lower() for key in head["keys"].split(","))
        that, to = tuple(parts.get("it is so that", ())), tuple(parts.get("one wants to", ()))
        weight = float(head.get("weight", 1))
        return cls(path.stem, names, keys, weight, bool(names), answers, questions, that, to, words)

    def all_answers(self) -> list[str]:
        return [answer for kind in (*KINDS, "short") for answer in self.answers.get(kind, ())]


@dataclass(frozen=True)
class Comparison:
    sides: tuple[str, str]
    answer: str


class HeldOut:
    """The held-out questions, and the rule for training texts: no four words in a row in common with one of them."""

    def __init__(self, path: Path = HERE / "held_out.tsv") -> None:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        self.questions: list[tuple[str, str]] = [(subject, question) for subject, question in rows]
        self.four_grams = {gram for _, question in self.questions for gram in four_grams(question)}
        self.dropped = 0

    def clashes(self, text: str) -> bool:
        clash = not self.four_grams.isdisjoint(four_grams(text))
        self.dropped += clash
        return clash


def four_grams(text: str) -> set[tuple[str, ...]]:
    """All sequences of four words, case-folded.

    The text is read twice: with punctuation deleted ("kvcache"), and with punctuation as a gap ("kv cache").
    """
    folded = text.casefold()
    readings = (re.sub(r"[^\w\s]|_", "", folded).split(), re.sub(r"[^\w\s]|_", " ", folded).split())
    return {tuple(words[i : i + 4]) for words in readings for i in range(len(words) - 3)}


class Corpus:
    """All texts of this folder, and the dialogues that are drawn from them."""

    def __init__(self, plain: float = 0.0) -> None:
        """plain: the share of questions from PLAIN, the shortest ones, many of them in small letters or capitals."""
        self.plain = plain
        self.held_out = HeldOut()
        self.subjects = {path.stem: Subject.read(path) for path in sorted((HERE / "subjects").glob("*.md"))}
        self.templates = {kind: tuple(lines) for kind, lines in sections(HERE / "templates.md").items() if kind}
        self.follow_ups = {kind: tuple(lines) for kind, lines in sections(HERE / "follow_ups.md").items() if kind}
        self.system = {kind: tuple(lines) for kind, lines in sections(HERE / "system.md").items() if kind}
        self.prose = tuple(line for line in sections(HERE / "prose.md")[""] if not line.startswith("# "))
        self.comparisons = tuple(
            Comparison((sides[0].strip(), sides[1].strip()), answer)
            for title, lines in sections(HERE / "comparisons.md").items()
            if len(sides := title.split("|")) == 2
            for answer in lines
        )
        self.noise = Noise(sections(HERE / "small_changes.md"))

    @cached_property
    def words(self) -> list[str]:
        return sorted({word for text in self.written() for word in re.findall(r"\b[A-Za-z]{2,12}\b", text)})

    @cached_property
    def technical(self) -> list[Subject]:
        return [subject for subject in self.subjects.values() if subject.technical]

    def references(self) -> list[tuple[frozenset[str], str]]:
        """Every answer in the corpus with the subjects for which it is right. A comparison is right for both sides."""
        plain = [(frozenset([s.id]), answer) for s in self.subjects.values() for answer in s.all_answers()]
        return plain + [(frozenset(comparison.sides), comparison.answer) for comparison in self.comparisons]

    # -- questions -----------------------------------------------------------------------------------------------

    def question(self, rng: random.Random, subject: Subject, kind: str) -> str:
        """One wording of a question, as somebody might type it, that does not clash with a held-out question."""
        while True:
            text = self.wording(rng, subject, kind)
            if (noisy := self.allowed(rng, text[0].upper() + text[1:])) is not None:
                return noisy

    def wording(self, rng: random.Random, subject: Subject, kind: str) -> str:
        """One of the subject's own questions, or a template filled with the subject's name or phrases."""
        if self.plain and subject.technical and rng.random() < self.plain:
            text = rng.choice(subject.names[:6]).fill(rng.choice(PLAIN[kind])) + rng.choice(("", "?"))
            return rng.choice((text, text.lower(), text.lower(), text.upper()))
        draw = rng.random()
        own = subject.questions.get(kind, ())
        if subject.technical and (not own or draw < 0.28):
            return rng.choice(subject.names).fill(rng.choice(self.templates[kind]))
        if subject.that and draw < 0.4:
            return rng.choice(self.templates[kind + " that"]).replace("{that}", rng.choice(subject.that))
        if subject.to and kind != "why" and draw < 0.46:
            return rng.choice(self.templates["to"]).replace("{to}", rng.choice(subject.to))
        if subject.technical and draw < 0.5:
            words = rng.choice(subject.all_answers()).split()
            start, length = rng.randrange(max(1, len(words) - 4)), rng.randint(3, 8)
            quote = " ".join(words[start : start + length]).strip(".,:;()")
            return rng.choice(self.templates["quote"]).replace("{quote}", quote)
        text = rng.choice(own)
        for gap in re.findall(r"{(\w+)}", text):
            text = text.replace("{" + gap + "}", rng.choice(subject.words[gap]), 1)
        return text

    def allowed(self, rng: random.Random, text: str) -> str | None:
        """The text after small changes, or None if it clashes with a held-out question before or after them."""
        noisy = self.noise.apply(rng, text)
        return None if self.held_out.clashes(text) or self.held_out.clashes(noisy) else noisy

    def compare(self, rng: random.Random) -> tuple[str, str]:
        """A question about two subjects, and its answer."""
        while True:
            comparison = rng.choice(self.comparisons)
            sides = [rng.choice(self.subjects[side].names) for side in comparison.sides]
            rng.shuffle(sides)
            text = rng.choice(self.templates["compare"]).format(x=sides[0].text, y=sides[1].text)
            if (noisy := self.allowed(rng, text[0].upper() + text[1:])) is not None:
                return noisy, comparison.answer

    # -- dialogues -----------------------------------------------------------------------------------------------

    def draw_subject(self, rng: random.Random) -> Subject:
        subjects = list(self.subjects.values())
        return rng.choices(subjects, [subject.weight for subject in subjects])[0]

    def turn(self, rng: random.Random, style: str = "", filler: str = "") -> tuple[str, str, Subject | None]:
        """One question and its answer under a style of system text, and the subject if a follow-up is possible."""
        if rng.random() < 0.05 and style in ("", "plain"):
            return *self.compare(rng), None
        subject = self.draw_subject(rng)
        kinds = [kind for kind in KINDS if subject.technical or kind in subject.questions]
        kind = rng.choices(kinds, [3 if kind == "what" else 2 for kind in kinds])[0]
        question = self.question(rng, subject, kind)
        if style == "name" and "named" in subject.answers:
            return question, rng.choice(subject.answers["named"]).format(name=filler), None
        wanted = "short" if style in ("short", "caps") else kind
        answer = rng.choice(subject.answers.get(wanted, subject.answers["what"]))
        if style == "caps":
            answer = answer.upper()
        elif style == "start":
            answer = f"{filler} {answer}"
        elif style == "end":
            answer = f"{answer} {filler}"
        return question, answer, subject if subject.technical else None

    def follow_up(self, rng: random.Random, subject: Subject, said: list[str]) -> tuple[str, str] | None:
        """A question such as "And why?" after an answer about the subject, and an answer that was not given yet."""
        kind = rng.choice(("why", "how", "short", "more"))
        pool = subject.all_answers() if kind == "more" else subject.answers.get(kind, ())
        fresh = [answer for answer in pool if answer not in said]
        question = self.noise.apply(rng, rng.choice(self.follow_ups[kind]))
        return (question, rng.choice(fresh)) if fresh and not self.held_out.clashes(question) else None

    def filler(self, rng: random.Random, style: str) -> str:
        """A name, or the first or last words of an answer. Many are invented, so that the model learns to copy."""
        listed = self.system.get("words: " + style, ("",))
        if style in ("plain", "short", "caps") or rng.random() < 0.4:
            return rng.choice(listed)
        if style == "name":
            syllables = [rng.choice("bdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))]
            return "".join(syllables).capitalize() + rng.choice(ENDINGS)
        words = " ".join(rng.sample(self.words, rng.choices((1, 2, 3, 4), (5, 4, 2, 1))[0]))
        return (words if rng.random() < 0.3 else words[0].upper() + words[1:]) + rng.choice(
            ".!:,?" if style == "start" else ".!?"
        )

    def dialogue(self, rng: random.Random, turns: int) -> list[Message]:
        """A dialogue of this many turns. A third of the dialogues have a system text."""
        messages: list[Message] = []
        style = filler = ""
        if rng.random() < 0.35:
            style = rng.choices(("plain", "short", "caps", "start", "end", "name"), (5, 3, 2, 3, 2, 3))[0]
            filler = self.filler(rng, style)
            text = rng.choice(self.system[style]).replace("{filler}", filler)
            if rng.random() < 0.2 and style not in ("plain", "name"):
                text = rng.choice(self.system["plain"]) + " " + text
            messages.append({"role": "system", "content": text})
        subject: Subject | None = None
        said: list[str] = []
        for turn in range(turns):
            follow = None
            if subject and style in ("", "plain") and rng.random() < 0.45:
                follow = self.follow_up(rng, subject, said)
            if style == "name" and turn == 0 and rng.random() < 0.6:
                question = self.question(rng, self.subjects["identity"], "what")
                answer = rng.choice(self.subjects["identity"].answers["named"]).format(name=filler)
            elif follow:
                question, answer = follow
            else:
                question, answer, subject = self.turn(rng, style, filler)
            said.append(answer)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if any(self.held_out.clashes(message["content"]) for message in messages):
            return self.dialogue(rng, turns)
        return messages

    def text(self, rng: random.Random) -> str:
        """Running text for plain continuation: paragraphs of the prose, or a subject's answers as one paragraph."""
        if rng.random() < 0.3:
            start = rng.randrange(len(self.prose))
            text = "\n\n".join(self.prose[start : start + rng.randint(1, 3)])
        else:
            subject = rng.choice(self.technical)
            text = " ".join(rng.choice(subject.answers[kind]) for kind in KINDS if kind in subject.answers)
        return self.text(rng) if self.held_out.clashes(text) else text

    def stream(self, seed: int) -> Iterator[list[Message] | str]:
        """An endless stream of dialogues (lists of messages) and, less often, running text (strings)."""
        rng = random.Random(seed)
        while True:
            draw = rng.random()
            if draw < 0.05:
                yield self.text(rng)
            elif draw < 0.054:
                yield self.dialogue(rng, rng.randint(8, 34))
            else:
                yield self.dialogue(rng, rng.choices((1, 2, 3, 4), (80, 13, 5, 2))[0])

    def written(self) -> list[str]:
        """Every text that was written for training, once each. The tokenizer and the tests use it."""
        texts = [*self.prose, *(answer for _, answer in self.references())]
        for subject in self.subjects.values():
            texts += [*subject.answers.get("named", ()), *subject.that, *subject.to]
            texts += [question for own in subject.questions.values() for question in own]
        for lines in (*self.templates.values(), *self.follow_ups.values(), *self.system.values()):
            texts += lines
        return texts


if __name__ == "__main__":
    corpus = Corpus()
    for number, item in zip(range(int(sys.argv[1]) if len(sys.argv) > 1 else 10), corpus.stream(seed=1), strict=False):
        print(f"--- {number}")
        print(item if isinstance(item, str) else "\n".join(f"{m['role']}: {m['content']}" for m in item))
