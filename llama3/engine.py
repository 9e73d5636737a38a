"""Many requests, one batch: every step feeds each running sequence its next rows and draws its next token.

The engine knows token ids alone: no text, no HTTP, no threads. Requests join and leave between steps. One that is
decoding needs a single row; one still in its prompt needs many, and gets a bounded chunk of them a step, so that a
long prompt never holds up the others for longer than that (chunked prefill, "Sarathi": Agrawal et al. 2023).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import RequestError
from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.sampler import Sample, Sampling, SamplingParams

PROMPT_ROWS = 512  # a step's rows of prompt: enough to make its products large, few enough to keep a step short

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Pending(Protocol):
    def samples(self) -> list[Sample | None]: ...


class Model(Protocol):
    """What the engine needs of a transformer."""

    @property
    def config(self) -> ModelConfig: ...
    def new_cache(self, slots: int, max_len: int) -> KVCache: ...
    def step(self, batch: Batch, cache: KVCache, samplings: Sequence[Sampling | None]) -> Pending: ...


@dataclass(eq=False)
class Request:
    """One generation, from `submit` to its last event."""

    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    mask: Callable[[], np.ndarray | None] | None = None  # the tokens allowed next, (vocab_size,) bool; None: all

    tokens: list[int] = field(default_factory=list, init=False)  # the answer so far, without the stop token
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)  # why, if finish_reason is "error"
    prompt_done: int = field(default=0, init=False)  # how many of the prompt's tokens have been read
    slot: int | None = field(default=None, init=False)
    sampling: Sampling = field(init=False, repr=False)


@dataclass(frozen=True)
class Event:
    """A request has gained a token, or has ended, or both. `sample` is None if it ended without one."""

    request: Request
    sample: Sample | None
    finish_reason: FinishReason | None


class Engine:
    def __init__(self, model: Model, slots: int = 1, max_len: int | None = None):
        """`slots` sequences run at once, each up to `max_len` tokens (default: the model's context); others wait."""
        if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
            raise RequestError(f"slots is {slots!r}; expected a whole number of at least 1")
        self.model = model
        self.max_len = model.config.max_seq_len if max_len is None else max_len
        self.cache = model.new_cache(slots, self.max_len)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the tokens that a free slot still remembers

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it can never run."""
        vocab_size, n = self.model.config.vocab_size, len(request.prompt)
        check_tokens(request.prompt, vocab_size)
        if isinstance(request.max_tokens, bool) or not isinstance(request.max_tokens, int) or request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens!r}; expected a whole number of at least 1")
        if n + request.max_tokens > self.max_len:
            raise RequestError(
                f"{n} prompt tokens and max_tokens {request.max_tokens} make {n + request.max_tokens}, "
                f"and the context window holds {self.max_len}; shorten the prompt or lower max_tokens"
            )
        request.sampling = Sampling(request.params, request.prompt, vocab_size, request.mask)
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request now, wherever it is. One that has ended already stays as it ended."""
        if request.finish_reason is None:
            self._finish(request, "cancelled")

    def step(self) -> list[Event]:
        """One forward pass for all running requests. A pass that fails ends the requests in it, and no others."""
        self._admit()
        rows = self._rows()
        if not rows:
            return []
        batch = Batch.of([(request.slot, tokens) for request, tokens, _ in rows])  # type: ignore[misc]
        samplings = [request.sampling if draws else None for request, _, draws in rows]
        lengths = [self._length(request) for request, _, _ in rows]
        try:
            samples = self.model.step(batch, self.cache, samplings).samples()
        except Exception as error:
            return [self._fail(request, error) for request, _, _ in rows]
        except BaseException:  # Ctrl-C: as if the step had never begun
            for slot, length in zip(batch.slots, lengths):
                self.cache.truncate(slot, length)
            raise
        for request, _, _ in rows:
            request.prompt_done = min(self._length(request), len(request.prompt))
        return [self._accept(request, sample) for (request, _, _), sample in zip(rows, samples) if sample is not None]

    def _admit(self) -> None:
        """Move waiting requests into free slots, each into the one that already holds most of its prompt."""
        while self.waiting and self.cache.free_slots:
            request = self.waiting.popleft()
            # The last token is always run again: its logits are what the first draw needs.
            known = {slot: _common_prefix(self._held[slot], request.prompt[:-1]) for slot in self.cache.free_slots}
            slot = max(known, key=lambda slot: (known[slot], -len(self._held[slot])))
            request.slot = self.cache.allocate(slot)
            self.cache.truncate(slot, known[slot])
            request.prompt_done = known[slot]
            self.running.append(request)

    def _rows(self) -> list[tuple[Request, list[int], bool]]:
        """(request, its tokens for this step, whether it draws): first those that decode, then chunks of prompts."""
        rows, budget = [], PROMPT_ROWS
        for request in sorted(self.running, key=lambda request: not request.tokens):  # stable: else by arrival
            start, prompt = self._length(request), len(request.prompt)
            todo = [*request.prompt[start:], *request.tokens[max(start - prompt, 0) :]]
            chunk = todo if request.tokens else todo[:budget]
            if chunk:
                rows.append((request, chunk, len(chunk) == len(todo)))
                budget -= 0 if request.tokens else len(chunk)
        return rows

    def _accept(self, request: Request, sample: Sample) -> Event:
        if sample.token in request.stop_ids:
            self._finish(request, "stop")
        else:
            request.tokens.append(sample.token)
            request.sampling.accept(sample.token)
            if len(request.tokens) == request.max_tokens:
                self._finish(request, "length")
        return Event(request, sample, request.finish_reason)

    def _fail(self, request: Request, error: Exception) -> Event:
        request.error = error
        self._finish(request, "error")
        return Event(request, None, "error")

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if request.slot is None:
            self.waiting.remove(request)
            return
        self._held[request.slot] = [*request.prompt, *request.tokens][: self._length(request)]
        self.running.remove(request)
        self.cache.free(request.slot)

    def _length(self, request: Request) -> int:
        assert request.slot is not None
        return self.cache.lengths[request.slot]


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raises RequestError, naming the position, unless these are ids of the vocabulary, and at least one."""
    if len(tokens) == 0:
        raise RequestError("the prompt is empty; expected at least one token")
    for i, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < vocab_size:
            raise RequestError(f"token {i} of the prompt is {token!r}; expected an id from 0 to {vocab_size - 1}")


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for n, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return n
    return min(len(a), len(b))
