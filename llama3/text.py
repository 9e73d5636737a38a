"""Turns tokens into text that can be shown at once: whole characters, and no part of a stop string."""

from collections.abc import Collection, Mapping

from llama3.errors import RequestError
from llama3.limits import LIMITS
from llama3.sampling_params import whole_number
from llama3.tokenizer import StreamDecoder, Tokenizer


def check_stops(stop: str | Collection[str] | None) -> tuple[str, ...]:
    """One stop string, several or none, as a tuple. Raises RequestError for an empty one, or for too many."""
    if stop is None:
        return ()
    if not isinstance(stop, Collection) or isinstance(stop, (bytes, bytearray, Mapping)):
        raise RequestError(f"stop is {type(stop).__name__}; expected a string or a list of them")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > LIMITS.stops:
        raise RequestError(f"stop has {len(stops)} strings; expected at most {LIMITS.stops}")
    for text in stops:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop holds {text!r}; expected strings of at least one character")
    return stops


def check_stop_ids(stop_ids: Collection[int] | None, vocab_size: int) -> frozenset[int]:
    """The ids as Python's ints. Raises RequestError for what is not a token id."""
    if not isinstance(stop_ids, Collection | None) or isinstance(stop_ids, str | bytes):
        raise RequestError(f"stop_ids is {type(stop_ids).__name__}; expected a list of token ids")
    ids = []
    for token in () if stop_ids is None else stop_ids:
        id = whole_number(token)
        if id is None or not 0 <= id < vocab_size:
            raise RequestError(f"stop_ids holds {token!r}; expected ids from 0 to {vocab_size - 1}")
        ids.append(id)
    return frozenset(ids)


class TextStream:
    """Takes tokens and returns text. Text that may be the beginning of a stop string is held back until it is clear."""

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...] = ()):
        """tokenizer: None makes all text empty, for checkpoints without a vocabulary. stops: from `check_stops`.

        Raises RequestError for stop strings without a tokenizer.
        """
        if stops and tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this checkpoint has none")
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer) if tokenizer is not None else None
        self._stops = stops
        self._held = ""
        self.stopped = False  # whether a stop string was found; it and everything after it are dropped

    def push(self, token: int) -> str:
        """The text that this token completes. It is empty while a character or a stop string may be incomplete."""
        if self._tokenizer is None or self._decoder is None or token not in self._tokenizer:
            return ""  # an embedding may be padded to a round number of rows: the ids of padding have no text
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        """The text that was held back. Call it at the end. An incomplete character becomes U+FFFD."""
        if self._decoder is None or self.stopped:
            return ""
        text = self._release(self._decoder.flush()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        """Append to the held text -> what can be shown: all before a stop string, or before what may become one."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`: _overlap("a </", "</s>") == 2."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
