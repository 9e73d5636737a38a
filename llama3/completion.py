"""The results of a generation: each token, the whole answer, and the numbers of tokens."""

from dataclasses import dataclass

from llama3.engine import FinishReason


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens: of the prompt, and of the answer without its stop token."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Piece:
    """One generated token. Its text is empty while a character is incomplete or may be the start of a stop string."""

    text: str
    token: int
    logprob: float | None  # natural log, from the raw logits; None: not requested, or forced by the grammar
    top_logprobs: tuple[tuple[int, float], ...]  # (token, logprob) of the most likely tokens
    finish_reason: FinishReason | None  # set on the last piece; a stop token has no text


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    tokens: list[int]  # without the stop token
    finish_reason: FinishReason
    usage: Usage
    seed: int  # as given, or as drawn; with it, the same text comes again
    pieces: list[Piece]  # every token, the stop token included
