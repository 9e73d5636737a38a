"""What a generation gives: its tokens one by one, and the whole answer with its usage."""

from dataclasses import dataclass

from llama3.engine import FinishReason


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Piece:
    """One generated token. Its text may be empty: half a character, or what may still become a stop string, waits."""

    text: str
    token: int
    logprob: float | None  # natural log, of the model's own distribution; None unless asked for, or if it had to come
    top_logprobs: tuple[tuple[int, float], ...]  # (token, logprob) of the most likely, as many as asked for
    finish_reason: FinishReason | None  # set on the last piece; if that is a stop token, its own text is not shown


@dataclass(frozen=True)
class Completion:
    text: str
    tokens: list[int]  # without the stop token
    finish_reason: FinishReason
    usage: Usage
    seed: int  # the one given, or the one drawn: it repeats this text
    pieces: list[Piece]  # every token with its logprob
