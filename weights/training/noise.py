"""Makes small changes to a question: a polite opening, synonyms, no capitals, a typing error."""

import random
import re

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# The keys to the left and the right of each key.
NEIGHBOURS = {letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in KEYBOARD for i, letter in enumerate(row)}


class Noise:
    def __init__(self, lists: dict[str, list[str]]) -> None:
        self.before = lists["before"]
        self.after = lists["after"]
        self.groups = [[phrase.strip() for phrase in line.split(",")] for line in lists["the same in other words"]]
        self.group_of = {phrase: group for group in self.groups for phrase in group}
        phrases = sorted(self.group_of, key=len, reverse=True)
        self.phrase = re.compile(r"\b(" + "|".join(map(re.escape, phrases)) + r")\b", re.IGNORECASE)
        self.short_forms = [tuple(line.split(" > ")) for line in lists["short forms"]]

    def apply(self, rng: random.Random, text: str) -> str:
        if rng.random() < 0.5:
            text = self.other_words(rng, text)
        if rng.random() < 0.12:
            text = self.drop_words(rng, text)
        if rng.random() < 0.04:
            text = self.key_words(rng, text)
        if rng.random() < 0.25:
            text = self.wrap(rng, text)
        if rng.random() < 0.25:
            for full, short in self.short_forms:
                text = re.sub(rf"\b{full}\b", short, text, flags=re.IGNORECASE)
        if rng.random() < 0.15:
            text = self.slip(rng, text)
        draw = rng.random()
        if draw < 0.35:
            text = text.lower()
        if draw < 0.28 or draw > 0.95:
            text = text.rstrip("?.! ")
        return text.strip() or "?"

    def other_words(self, rng: random.Random, text: str) -> str:
        def swap(match: re.Match[str]) -> str:
            found = match.group(0)
            if rng.random() < 0.5:
                return found
            other = rng.choice(self.group_of.get(found.lower(), [found]))
            return other[0].upper() + other[1:] if found[0].isupper() else other

        return self.phrase.sub(swap, text)

    def drop_words(self, rng: random.Random, text: str) -> str:
        """Leave out one word, because a question can often be understood without it."""
        words = text.split()
        if len(words) > 4:
            del words[rng.randrange(len(words))]
        return " ".join(words)

    def key_words(self, rng: random.Random, text: str) -> str:
        """Only the longer words, in any order, as people type into a search engine."""
        words = [word for word in re.findall(r"[\w'-]+", text) if len(word) > 3]
        if len(words) < 2:
            return text
        rng.shuffle(words)
        return " ".join(words[:5])

    def wrap(self, rng: random.Random, text: str) -> str:
        """Add an opening before the question, or an ending after it."""
        if rng.random() < 0.6:
            opening = rng.choice(self.before)
            lower = opening[-1] in ",:" and not re.match(r"[A-Z]\w*[A-Z0-9]|I\b", text)
            return f"{opening} {text[0].lower() + text[1:] if lower else text}"
        ending = rng.choice(self.after)
        if ending[0].isupper():
            return f"{text} {ending}"
        return f"{text.rstrip('?.! ')}{ending}{'?' if text.endswith('?') else ''}"

    def slip(self, rng: random.Random, text: str) -> str:
        """A typing error: a letter of a longer word is swapped, lost, doubled, or replaced by a neighbouring key's."""
        places = [m.start() for m in re.finditer(r"(?<=[a-z]{2})[a-z](?=[a-z])", text)]
        if not places:
            return text
        i = rng.choice(places)
        letter, following = text[i], text[i + 1]
        beside = rng.choice(NEIGHBOURS[letter])
        new = rng.choice((following + letter, following, letter + letter + following, beside + following))
        return text[:i] + new + text[i + 2 :]
