"""Many requests, one batch: every step feeds each running sequence its next rows and draws its next token.

The engine knows token ids alone: no text, no HTTP, no threads. Requests join and leave between steps. One that is
decoding needs a single row; one still in its prompt needs many, and gets a bounded chunk of them a step, so that a
long prompt never holds up the others for longer than that (chunked prefill, "Sarathi": Agrawal et al. 2023).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import LogitsError, RequestError
from llama3.model.batch import Batch
from llama3.model.kv_cache import Slots
from llama3.model.transformer import Trace
from llama3.sampler import Sample, SequenceSampler
from llama3.sampling_params import SamplingParams

MAX_TOKENS = 256  # of an answer, unless the caller says otherwise: the default of Cloudflare Workers AI
PREFILL_CHUNK = 512  # of prompt, beside rows that decode: enough for large products, few enough to keep a step short

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Pending(Protocol):
    def samples(self) -> list[Sample | LogitsError | None]: ...


class Model(Protocol):
    """The face of a transformer, in NumPy or on a GPU. Each has its own kind of cache: what `new_cache` gives."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def prefill_chunk(self) -> int: ...  # in place of PREFILL_CHUNK, as long as nobody waits for a next token
    def new_cache(self, slots: int, max_len: int) -> Any: ...
    def forward(self, batch: Batch, cache: Any, rows: np.ndarray, trace: Trace | None = None) -> np.ndarray: ...
    def step(self, batch: Batch, cache: Any, samplers: Sequence[SequenceSampler | None]) -> Pending: ...


@dataclass(eq=False)
class Request:
    """One generation, from `submit` to its end."""

    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    adapter: str | None = None  # the LoRA adapter, by its name
    mask: Callable[[], np.ndarray | None] | None = None  # the tokens allowed next, (vocab_size,) bool; None: all
    forced: Callable[[], Sequence[int]] | None = None  # the tokens that must come next: they need no step of their own

    samples: list[Sample] = field(default_factory=list, init=False)  # every token drawn so far
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)  # why, if finish_reason is "error"
    prompt_done: int = field(default=0, init=False)  # how many of the prompt's tokens have been read
    slot: int | None = field(default=None, init=False)

    @property
    def tokens(self) -> list[int]:
        """The answer so far, without the stop token."""
        tokens = [sample.token for sample in self.samples]
        return tokens[:-1] if tokens and tokens[-1] in self.stop_ids else tokens

    def settle(self) -> None:
        """End by the last sample, unless something else has ended it already."""
        if self.finish_reason is None and self.samples:
            if self.samples[-1].token in self.stop_ids:
                self.finish_reason = "stop"
            elif len(self.samples) == self.max_tokens:
                self.finish_reason = "length"


@dataclass(frozen=True)
class Event:
    """A request has gained a token, or has ended, or both. `sample` is None if it ended without one."""

    request: Request
    sample: Sample | None
    finish_reason: FinishReason | None


class Engine:
    """`step` belongs to one thread at a time; `submit` and `cancel` may be called from any, at any moment.

    What has been drawn (`Request.samples`) and how far a slot is filled (`Slots.lengths`) are the whole state, and
    all else follows from the two. So a step that Ctrl-C cuts off anywhere is simply taken up again by the next.
    """

    def __init__(self, model: Model, slots: int = 1, max_len: int | None = None):
        """`slots` sequences run at once, each up to `max_len` tokens (default: the model's context); others wait."""
        if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
            raise RequestError(f"slots is {slots!r}; expected a whole number of at least 1")
        self.model = model
        self.max_len = model.config.max_seq_len if max_len is None else max_len
        self.cache: Slots = model.new_cache(slots, self.max_len)
        self.waiting: deque[Request] = deque()
        self.tenants: list[Request | None] = [None] * slots  # who lives in a slot, or lived there last
        # With arrays of the vocabulary's size: those who wait need none, and those who have ended are to keep none.
        self.samplers: list[SequenceSampler | None] = [None] * slots

    @property
    def running(self) -> list[Request]:
        return [request for request in self.tenants if request and not request.finish_reason]

    @property
    def busy(self) -> bool:
        return bool(self.running or any(not request.finish_reason for request in self.waiting))

    def submit(self, request: Request) -> None:
        """Queue a request, and draw its seed if it has none. Raises RequestError if it can never run."""
        n = len(request.prompt)
        check_tokens(request.prompt, self.model.config.vocab_size)
        if isinstance(request.max_tokens, bool) or not isinstance(request.max_tokens, int) or request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens!r}; expected a whole number of at least 1")
        if n + request.max_tokens > self.max_len:
            raise RequestError(
                f"{n} prompt tokens and max_tokens {request.max_tokens} make {n + request.max_tokens}, "
                f"and the context window holds {self.max_len}; shorten the prompt or lower max_tokens"
            )
        request.params = request.params.with_seed()
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request now, wherever it is. One that has ended already stays as it ended."""
        request.finish_reason = request.finish_reason or "cancelled"

    def step(self) -> list[Event]:
        """One forward pass for all running requests. A pass that fails ends the requests in it, and no others."""
        self._admit()
        rows = self._rows()
        if not rows:
            return []
        adapters = [request.adapter for request, *_ in rows]
        batch = Batch.of([(slot, tokens) for _, slot, tokens, _ in rows], adapters)
        samplers = [self.samplers[slot] if draws else None for _, slot, _, draws in rows]
        try:
            samples = self.model.step(batch, self.cache, samplers).samples()
        except Exception as error:
            return [_fail(request, error) for request, *_ in rows]
        for request, slot, _, _ in rows:
            request.prompt_done = min(self.cache.lengths[slot], len(request.prompt))
        drawn = [(request, sample) for (request, *_), sample in zip(rows, samples) if sample is not None]
        return [event for request, sample in drawn for event in _accept(request, sample)]

    def _admit(self) -> None:
        """Move waiting requests into free slots, each into the one that already holds most of its prompt."""
        while self.waiting:
            request = self.waiting[0]
            if request not in self.tenants and not request.finish_reason:
                free = [slot for slot, tenant in enumerate(self.tenants) if not tenant or tenant.finish_reason]
                if not free:
                    return
                # The last token is always run again: its logits are what the first draw needs.
                held = {slot: self._held(slot, request.adapter) for slot in free}
                known = {slot: _common_prefix(held[slot], request.prompt[:-1]) for slot in free}
                slot = max(free, key=lambda slot: (known[slot], -len(held[slot])))
                self.cache.truncate(slot, known[slot])
                request.slot, request.prompt_done = slot, known[slot]
                vocab_size = self.model.config.vocab_size
                self.samplers[slot] = SequenceSampler(request.params, request.prompt, vocab_size, request.mask)
                self.tenants[slot] = request
            self.waiting.popleft()

    def _held(self, slot: int, adapter: str | None) -> list[int]:
        """The tokens whose keys and values a slot holds, as this adapter makes them."""
        tenant = self.tenants[slot]
        if tenant is None or tenant.adapter != adapter:
            return []
        return [*tenant.prompt, *tenant.tokens][: self.cache.lengths[slot]]

    def _rows(self) -> list[tuple[Request, int, list[int], bool]]:
        """(request, slot, its tokens for this step, whether it draws): those that decode, then chunks of prompts."""
        running = sorted(self.running, key=lambda request: not request.samples)
        rows, budget = [], PREFILL_CHUNK if running and running[0].samples else self.model.prefill_chunk
        for request in running:
            slot, prompt, samples = request.slot, request.prompt, request.samples
            assert slot is not None
            sampler = self.samplers[slot]
            assert sampler is not None
            # All this changes nothing, unless Ctrl-C has cut the last step off after its forward pass or its draw.
            request.settle()
            self.cache.truncate(slot, min(self.cache.lengths[slot], len(prompt) + len(samples) - 1))
            for sample in samples[sampler.index :]:
                sampler.accept(sample.token)
            if request.finish_reason:
                continue

            start = self.cache.lengths[slot]
            todo = [*prompt[start:], *(sample.token for sample in samples[max(start - len(prompt), 0) :])]
            chunk = todo if samples else todo[:budget]
            if chunk:
                rows.append((request, slot, chunk, len(chunk) == len(todo)))
                budget -= 0 if samples else len(chunk)
        return rows


def _accept(request: Request, sample: Sample | LogitsError) -> list[Event]:
    """Append what was drawn, and what must follow it. The next step reads all of these tokens at once."""
    if isinstance(sample, LogitsError):
        return [_fail(request, sample)]
    request.samples.append(sample)
    request.settle()
    events = [Event(request, sample, request.finish_reason)]
    if request.forced is not None and not request.finish_reason:
        try:
            tokens = request.forced()
        except LogitsError as error:
            return [*events, _fail(request, error)]
        for token in tokens:
            if not request.finish_reason:
                request.samples.append(Sample(token))
                request.settle()
                events.append(Event(request, request.samples[-1], request.finish_reason))
    return events


def _fail(request: Request, error: Exception) -> Event:
    request.error = error
    request.finish_reason = request.finish_reason or "error"
    return Event(request, None, request.finish_reason)


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
