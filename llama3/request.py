"""A request: one generation, from the prompt's token ids to the last token of its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from llama3.errors import LogitsError, RequestError
from llama3.logit_hooks import Adjust
from llama3.sampler import Sample
from llama3.sampling_params import SamplingParams, whole_number

MAX_TOKENS = 256  # longest answer unless the caller sets another limit: the default of Cloudflare Workers AI

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(eq=False, slots=True, weakref_slot=True)
class Request:
    """One generation, from `submit` to its end."""

    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int | None = None  # None: MAX_TOKENS, or what the context window leaves; `submit` sets it
    stop_ids: frozenset[int] = frozenset()
    adapter: str | None = None  # name of its LoRA adapter
    mask: Callable[[], np.ndarray | None] | None = None  # -> the tokens allowed next, (vocab_size,) bool; None: all
    forced: Callable[[], Sequence[int]] | None = None  # -> the tokens that must come next; they are not drawn
    adjust: Adjust | None = None  # changes the raw logits before the penalties; on the CPU only

    samples: list[Sample] = field(default_factory=list, init=False)  # the answer so far, with its stop token
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)  # the cause, if finish_reason is "error"
    prompt_done: int = field(default=0, init=False)  # how many tokens of the prompt have been read
    slot: int | None = field(default=None, init=False)
    number: int = field(default=0, init=False)  # counts the requests that have got a slot, in their order

    @property
    def tokens(self) -> list[int]:
        """The answer so far, without the stop token."""
        tokens = [sample.token for sample in self.samples]
        return tokens[:-1] if tokens and tokens[-1] in self.stop_ids else tokens

    @property
    def tokens_left(self) -> int:
        assert self.max_tokens is not None  # `submit` has set it
        return self.max_tokens - len(self.samples)

    @property
    def needs_each_token(self) -> bool:
        """Whether a function must see a token before the next one can be drawn."""
        return self.mask is not None or self.forced is not None or self.adjust is not None

    def update_finish_reason(self) -> None:
        """Set finish_reason if the last sample ends the answer. A reason that is already set stays."""
        samples = self.samples
        if samples and self.finish_reason is None:
            if samples[-1].token in self.stop_ids:
                self.finish_reason = "stop"
            elif len(samples) == self.max_tokens:
                self.finish_reason = "length"


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Event:
    """A request gained a token, or ended, or both. `sample` is None if it ended without a token."""

    request: Request
    sample: Sample | None
    finish_reason: FinishReason | None


def accept(request: Request, sample: Sample | LogitsError, events: list[Event]) -> None:
    """Append the token that was drawn and the tokens that must follow it. The next step feeds all of them at once."""
    if isinstance(sample, LogitsError):
        events.append(fail(request, sample))
        return
    samples = request.samples
    samples.append(sample)
    if sample.token in request.stop_ids or len(samples) == request.max_tokens:
        request.update_finish_reason()
    events.append(Event(request, sample, request.finish_reason))
    if request.forced is not None and not request.finish_reason:
        accept_forced(request, request.forced, events)


def accept_forced(request: Request, forced: Callable[[], Sequence[int]], events: list[Event]) -> None:
    """Append the tokens that must follow what has been drawn."""
    try:
        tokens = forced()
    except LogitsError as error:
        events.append(fail(request, error))
        return
    for token in tokens:
        if not request.finish_reason:
            request.samples.append(Sample(token))
            request.update_finish_reason()
            events.append(Event(request, request.samples[-1], request.finish_reason))


def fail(request: Request, error: Exception) -> Event:
    request.error = error
    request.finish_reason = request.finish_reason or "error"
    return Event(request, None, request.finish_reason)


def checked_tokens(tokens: Sequence[int], vocab_size: int) -> list[int]:
    """The tokens as Python ints. Raises RequestError if there are none or one, which it names, is no id."""
    if len(tokens) == 0:
        raise RequestError("the prompt is empty; expected at least one token")
    ids = []
    for i, token in enumerate(tokens):
        id = whole_number(token)
        if id is None or not 0 <= id < vocab_size:
            raise RequestError(f"token {i} of the prompt is {token!r}; expected an id from 0 to {vocab_size - 1}")
        ids.append(id)
    return ids


def at_least_1(name: str, value: Any) -> int:
    """The value as an int. Raises RequestError with the parameter's name unless it is a whole number of at least 1."""
    number = whole_number(value)
    if number is None or number < 1:
        raise RequestError(f"{name} is {value!r}; expected a whole number of at least 1")
    return number
