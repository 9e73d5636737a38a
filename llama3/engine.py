"""Many requests in one batch: every step feeds each running sequence its next tokens and draws the token after them.

The engine works with token ids; text, HTTP and threads are handled elsewhere. Requests join and leave between steps. A
request that is decoding needs one row in a step. A request whose prompt is still being read gets a chunk of limited
size, so that a long prompt delays the others by no more than that (chunked prefill, "Sarathi": Agrawal et al. 2023).
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import RequestError
from llama3.model.batch import Batch
from llama3.model.transformer import Trace
from llama3.request import MAX_TOKENS, Event, Request, accept, at_least_1, checked_tokens, fail
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams
from llama3.step_ahead import Pending, Running, may_follow

MIN_COPY = 32  # tokens: computing fewer than this is as quick as copying their keys and values from another slot


class Cache(Protocol):
    """What the engine does with keys and values; `model/kv_cache.py` explains it."""

    lengths: list[int]
    dtype: np.dtype[Any]

    def truncate(self, slot: int, length: int) -> None: ...
    def copy_prefix(self, source: int, target: int, length: int) -> None: ...
    def read(self, slot: int) -> tuple[np.ndarray, np.ndarray]: ...
    def restore(self, slot: int, k: np.ndarray, v: np.ndarray) -> None: ...


class Model(Protocol):
    """The interface shared by `CpuModel` and the CUDA model. Each has its own kind of cache, made by `new_cache`."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def prefill_chunk(self) -> int: ...  # at most so many prompt tokens in a step in which no request decodes
    @property
    def mixed_prefill_chunk(self) -> int: ...  # the same for a step in which others decode, and wait for its end
    def new_cache(self, slots: int, max_len: int) -> Any: ...
    def forward(self, batch: Batch, cache: Any, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray: ...
    def step(self, batch: Batch, cache: Any, samplers: Sequence[SequenceSampler | None]) -> Pending: ...


class Scheduled(NamedTuple):
    """A request's part in one step."""

    request: Request
    slot: int
    tokens: list[int]  # the tokens that it feeds to the model
    draws: bool  # no tokens are left to feed after these, so the step draws the next one


class Engine:
    """Only one thread at a time may call `step`. `submit` and `cancel` may be called from any thread at any moment.

    The tokens drawn so far (`Request.samples`) and the filled length of each slot (`Cache.lengths`) are the whole
    state; everything else is derived from them. So if Ctrl-C interrupts a step anywhere, the next step resumes it.
    """

    def __init__(self, model: Model, slots: int = 1, max_len: int | None = None):
        """At most `slots` sequences run at once, each of up to `max_len` tokens (default: the model's context)."""
        slots = at_least_1("slots", slots)
        self.model = model
        self.max_len = model.config.max_seq_len if max_len is None else max_len
        self.cache: Cache = model.new_cache(slots, self.max_len)
        self.waiting: deque[Request] = deque()
        self._all = range(slots)
        self.slot_requests: list[Request | None] = [None] * slots  # per slot: its request, or the last one it had
        # Kept per slot and not per request, because each sampler holds two arrays of the vocabulary's size.
        self.samplers: list[SequenceSampler | None] = [None] * slots
        self.admitted = 0  # requests that have got a slot so far
        self._ahead: Running | None = None  # the next pass, if it has begun already

    @property
    def running(self) -> list[Request]:
        return [request for request in self.slot_requests if request and not request.finish_reason]

    @property
    def busy(self) -> bool:
        return bool(self.running or any(not request.finish_reason for request in self.waiting))

    def submit(self, request: Request) -> None:
        """Queue a request, and set its max_tokens and seed if it has none. Raises RequestError if it can never run."""
        request.prompt = checked_tokens(request.prompt, self.model.config.vocab_size)
        n, window = len(request.prompt), self.max_len
        if n >= window:
            raise RequestError(
                f"the prompt has {n} tokens, and the context window holds {window}, the answer included; "
                "shorten the prompt"
            )
        if request.max_tokens is None:
            request.max_tokens = min(MAX_TOKENS, window - n)
        request.max_tokens = at_least_1("max_tokens", request.max_tokens)
        if n + request.max_tokens > window:
            raise RequestError(
                f"{n} prompt tokens and max_tokens {request.max_tokens} make {n + request.max_tokens}, "
                f"and the context window holds {window}; shorten the prompt or lower max_tokens"
            )
        request.params = request.params.with_seed()
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request now, whether it waits or runs. A request that has already ended stays as it ended."""
        request.finish_reason = request.finish_reason or "cancelled"

    def restore(self, tokens: list[int], adapter: str | None, k: np.ndarray, v: np.ndarray) -> None:
        """Fill a free slot with stored keys and values, for the next prompts that begin with `tokens`.

        k, v: of all the tokens, in the form that the cache's `read` returns. Raises RequestError if no slot is free.
        """
        slot = self._best_slot([_common_prefix(self._cached_tokens(slot, adapter), tokens) for slot in self._all])
        if slot is None:
            raise RequestError(
                f"all {len(self._all)} slots are in use; wait until an answer ends, or load with more slots"
            )
        self.slot_requests[slot] = None  # Ctrl-C may come while the slot holds neither the old tokens nor the new
        self.cache.restore(slot, k, v)
        owner = Request(tokens, SamplingParams(), adapter=adapter)  # records which tokens the slot holds
        owner.finish_reason, owner.number = "stop", self.admitted
        self.slot_requests[slot] = owner

    def abandon(self, error: Exception) -> None:
        """End every request that waits or runs, with this error."""
        for request in [*self.running, *self.waiting]:
            fail(request, error)

    def step(self) -> list[Event]:
        """One forward pass for all running requests. If the pass fails, the requests in it end, and no others.

        If the model can and nothing waits for the tokens of this pass, the next one begins before they are read: so a
        GPU goes on while the host hands them out. What that pass draws for a request that has ended is dropped.
        """
        running, self._ahead = self._ahead, None  # Ctrl-C drops both passes: the next step runs them again
        if running and running.in_vain:
            for request in running.requests:
                self._drop_row(request)
            running = None
        scheduled = [] if running else self._plan()
        requests = running.requests if running else [part.request for part in scheduled]
        if not requests:
            return []
        try:
            running = running or self._begin(scheduled)
            following = self._begin_next(running)
            samples = running.pending.samples()
        except Exception as error:
            return [fail(request, error) for request in requests if not request.finish_reason]
        for part in scheduled:
            part.request.prompt_done = min(self.cache.lengths[part.slot], len(part.request.prompt))
        events: list[Event] = []
        for request, sample in zip(requests, samples):
            if request.finish_reason:
                self._drop_row(request)
            elif sample is not None:
                accept(request, sample, events)
        self._ahead = following
        return events

    def _plan(self) -> list[Scheduled]:
        """Let waiting requests join, and divide the next pass among all that run."""
        self._admit()
        for request in self.running:
            self._synchronise(request)
        return self._schedule()

    def _begin(self, scheduled: list[Scheduled]) -> Running:
        """Begin a pass from the tokens that the host has."""
        requests = [part.request for part in scheduled]
        batch = Batch.of([(part.slot, part.tokens) for part in scheduled], [request.adapter for request in requests])
        samplers = [self.samplers[part.slot] if part.draws else None for part in scheduled]
        n_ahead = may_follow(requests, all_draw=all(part.draws for part in scheduled))
        return Running(requests, self.model.step(batch, self.cache, samplers), n_ahead)

    def _begin_next(self, running: Running) -> Running | None:
        """Begin the pass after a running one; None if it must wait for this one's tokens, or a request can join."""
        joins = self.waiting and any(last is None or last.finish_reason for last in self.slot_requests)
        return None if joins else running.begin_next()

    def _drop_row(self, request: Request) -> None:
        """A pass ran for a request that had ended: free the position, unless the slot has another owner by now."""
        slot = request.slot
        if slot is not None and self.slot_requests[slot] is request:
            known = len(request.prompt) + len(request.tokens)
            self.cache.truncate(slot, min(self.cache.lengths[slot], known))

    def _admit(self) -> None:
        """Move waiting requests into free slots, first come, first served."""
        while self.waiting:
            # It leaves the queue last, so that Ctrl-C cannot lose it. So it may already have a slot.
            request = self.waiting[0]
            if request not in self.slot_requests and not request.finish_reason:
                slot = self._take_slot(request)
                if slot is None:
                    return
                request.slot, request.prompt_done = slot, self.cache.lengths[slot]
                hooks, vocab_size = (request.mask, request.adjust), self.model.config.vocab_size
                self.samplers[slot] = SequenceSampler(request.params, request.prompt, vocab_size, *hooks)
                self.admitted += 1
                request.number = self.admitted
                self.slot_requests[slot] = request
            self.waiting.popleft()

    def _take_slot(self, request: Request) -> int | None:
        """Choose a free slot and reuse the longest beginning of the prompt that a slot holds; None if no slot is free.

        The prompt's last token is always run again: its logits are what the first draw needs.
        """
        common = [_common_prefix(self._cached_tokens(slot, request.adapter), request.prompt[:-1]) for slot in self._all]
        slot = self._best_slot(common)
        if slot is None:
            return None
        source = max(self._all, key=common.__getitem__)
        if common[source] >= common[slot] + MIN_COPY:
            self.slot_requests[slot] = None  # Ctrl-C may come while the slot holds neither the old tokens nor the new
            self.cache.copy_prefix(source, slot, common[source])
        else:
            self.cache.truncate(slot, common[slot])
        return slot

    def _best_slot(self, common: Sequence[int]) -> int | None:
        """The free slot whose tokens are missed least if all but its first `common[slot]` are overwritten.

        The loss of a slot is the number of these tokens over the square root of its age, counted in requests. With the
        number alone, a long document that nobody asks about again would hold its slot forever, and the dialogues would
        overwrite each other in the remaining ones. With the age alone, two short questions would cost a dialogue its
        slot. Among equals, the slot with the largest `common[slot]` is chosen. None: no slot is free.
        """

        def loss(slot: int) -> tuple[float, int]:
            last = self.slot_requests[slot]
            age = self.admitted + 1 - (last.number if last else 0)
            return (self.cache.lengths[slot] - common[slot]) / math.sqrt(age), -common[slot]

        free = [slot for slot, last in enumerate(self.slot_requests) if last is None or last.finish_reason]
        return min(free, key=loss, default=None)

    def _cached_tokens(self, slot: int, adapter: str | None) -> list[int]:
        """The tokens whose keys and values a slot holds, if they were computed with the same adapter."""
        last = self.slot_requests[slot]
        if last is None or last.adapter != adapter:
            return []
        return [*last.prompt, *last.tokens][: self.cache.lengths[slot]]

    def _synchronise(self, request: Request) -> None:
        """Bring the slot and the sampler in line with the request's samples.

        The sampler counts the tokens that were added since the last step. Nothing else changes, unless Ctrl-C
        interrupted the last step after its forward pass or its draw.
        """
        slot = request.slot
        assert slot is not None
        sampler = self.samplers[slot]
        assert sampler is not None
        request.update_finish_reason()
        fed_at_most = len(request.prompt) + len(request.samples) - 1  # the last sample is what the next step feeds
        if self.cache.lengths[slot] > fed_at_most:
            self.cache.truncate(slot, fed_at_most)
        if sampler.index < len(request.samples):
            sampler.accept(*(sample.token for sample in request.samples[sampler.index :]))

    def _schedule(self) -> list[Scheduled]:
        """Every decoding request with its new tokens, then unread prompt tokens up to the step's prefill budget.

        Prompts are read in the order in which they got their slots. In the order of the slots, one in the last slot
        would wait for as long as new requests come into the others.
        """
        running = sorted(self.running, key=lambda request: 0 if request.samples else request.number)
        decoding = bool(running and running[0].samples)
        scheduled, budget = [], self.model.mixed_prefill_chunk if decoding else self.model.prefill_chunk
        for request in running:
            slot, prompt, samples = request.slot, request.prompt, request.samples
            assert slot is not None
            start = self.cache.lengths[slot]
            todo = [sample.token for sample in samples[max(start - len(prompt), 0) :]]
            if start < len(prompt):
                todo = [*prompt[start:], *todo]
            tokens = todo if samples else todo[:budget]
            if tokens:
                scheduled.append(Scheduled(request, slot, tokens, draws=len(tokens) == len(todo)))
                budget -= 0 if samples else len(tokens)
        return scheduled


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for n, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return n
    return min(len(a), len(b))
