"""Added tokens: tokens outside the byte-pair vocabulary, found in a text by their names before the text is split.

The fields of such a token have the meaning that the package `tokenizers` gives them. Llama 3's own added tokens are
control tokens, and all their other flags are false. A fine-tune may add tokens that are not control tokens, such as
<tool_call>: these are recognised in any text.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class AddedToken(NamedTuple):
    """One entry of `added_tokens` in tokenizer.json."""

    content: str  # the text that becomes this token
    id: int
    special: bool = True  # a control token: text becomes it only if the caller allows that
    normalized: bool = False  # found after the tokens that are not normalized, in the text between them
    single_word: bool = False  # only where neither the character before it nor the one after it belongs to a word
    lstrip: bool = False  # the white space before it becomes part of it
    rstrip: bool = False  # the white space after it becomes part of it
    doubt: str = ""  # why its id is uncertain, else empty; with a doubt it can be decoded, but not used in a prompt


class AddedTokens:
    """Finds the added tokens of a vocabulary in a text."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.by_name = {token.content: token for token in tokens}
        self._all_special = all(token.special for token in self.by_name.values())
        self._patterns = [
            _any_of(name for name, token in self.by_name.items() if token.normalized == normalized)
            for normalized in (False, True)
        ]

    def split(self, text: str, allow_special: bool) -> Iterator[str | AddedToken]:
        """Yield the added tokens of a text and the pieces of text between them. No piece is empty.

        Without `allow_special`, the name of a control token remains text.
        """
        if self._all_special and not allow_special:
            yield from [text] * bool(text)
            return
        first, second = self._patterns
        for part in self._find(first, text, allow_special):
            if isinstance(part, str):
                yield from self._find(second, part, allow_special)
            else:
                yield part

    def _find(self, pattern: re.Pattern[str], text: str, allow_special: bool) -> Iterator[str | AddedToken]:
        done = 0  # everything before this position has been yielded
        for match in pattern.finditer(text):
            token, (start, stop) = self.by_name[match.group()], match.span()
            if token.special and not allow_special:
                continue
            if token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[stop : stop + 1])):
                continue
            if token.lstrip:
                start = max(start, done)  # the white space that a name begins with may belong to the token before it
                while start > done and _is_space(text[start - 1]):
                    start -= 1
            while token.rstrip and stop < len(text) and _is_space(text[stop]):
                stop += 1
            if start > done:
                yield text[done:start]
            if stop > start:
                yield token
            done = stop
        if done < len(text):
            yield text[done:]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the names, and the longest one where several match."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _is_space(character: str) -> bool:
    """Whether a character has Unicode's property White_Space. `str.isspace` is also true for U+001C to U+001F."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_word(character: str) -> bool:
    r"""Whether \w matches a character by Unicode's definition (UTS 18), which `re` does not follow. False for ""."""
    import regex  # here, because few vocabularies have a token with single_word

    return bool(regex.match(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]", character))
