"""From token ids to text as it may be shown: never half a character, never a stop string or the beginning of one."""

from collections.abc import Sequence

from llama3.errors import RequestError
from llama3.limits import LIMITS
from llama3.tokenizer import StreamDecoder, Tokenizer


def check_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several -> a tuple. Raises RequestError for an empty one, or for more than 16."""
    if not isinstance(stop, (str, list, tuple)):
        raise RequestError(f"stop is {type(stop).__name__}; expected a string or a list of them")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > LIMITS.stops:
        raise RequestError(f"stop has {len(stops)} strings; expected at most {LIMITS.stops}")
    for text in stops:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop holds {text!r}; expected strings of at least one character")
    return stops


class TextStream:
    """Feeds on tokens, gives text. Text that could still turn into a stop string is held back until it is decided."""

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...] = ()):
        """Without a tokenizer all text is empty, and only ids speak."""
        if stops and tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this checkpoint has none")
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer) if tokenizer is not None else None
        self._stops = stops
        self._held = ""
        self.stopped = False  # a stop string has come: everything from it on is dropped

    def push(self, token: int) -> str:
        if self._tokenizer is None or self._decoder is None or token not in self._tokenizer:
            return ""  # an embedding may be padded to a round number: such ids have no text
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        """The end: what was held back is text after all. Half a character becomes U+FFFD."""
        if self._decoder is None or self.stopped:
            return ""
        text = self._release(self._decoder.flush()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins: _overlap("a </", "</s>") == 2."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
