"""The results of a generation: each token, the whole answer, and the numbers of tokens."""

import math
from dataclasses import dataclass
from typing import Any

from llama3.request import FinishReason


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens: of the prompt, and of the answer without its stop token."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        """The three numbers by name."""
        return {name: getattr(self, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


@dataclass(frozen=True)
class Piece:
    """One generated token. Its text is empty while a character is incomplete or may be the start of a stop string."""

    text: str
    token: int
    logprob: float | None  # natural log, from the raw logits; None: not requested, or forced by the grammar
    top_logprobs: tuple[tuple[int, float], ...]  # (token, logprob) of the most likely tokens
    finish_reason: FinishReason | None  # set on the last piece; a stop token has no text

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON: a log-probability of -inf, which JSON lacks, becomes None."""
        top = [[token, _finite(logprob)] for token, logprob in self.top_logprobs]
        return {**vars(self), "logprob": _finite(self.logprob), "top_logprobs": top}


@dataclass(frozen=True, repr=False)
class Completion:
    """A whole answer."""

    text: str
    tokens: list[int]  # without the stop token
    finish_reason: FinishReason
    usage: Usage
    seed: int  # as given, or as drawn; with it, the same text comes again
    pieces: list[Piece]  # every token, the stop token included

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 40 else self.text[:39] + "…"
        n = self.usage.completion_tokens
        return f"<Completion: {text!r}, {n} tokens, finish_reason {self.finish_reason!r}, seed {self.seed}>"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain dictionaries and lists, ready for JSON."""
        parts = {"usage": self.usage.as_dict(), "pieces": [piece.as_dict() for piece in self.pieces]}
        return {**vars(self), "tokens": list(self.tokens), **parts}


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is not None and math.isfinite(logprob) else None
