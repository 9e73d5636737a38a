"""Llama: load a checkpoint, then logits, generate, stream, chat. All that an embedder touches."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama3.chat import Message, encode_dialog
from llama3.checkpoint import Checkpoint, load_folder, resolve
from llama3.engine import PROMPT_ROWS, Engine, Event, FinishReason, Request, check_tokens
from llama3.errors import Llama3Error, RequestError
from llama3.model.batch import Batch
from llama3.model.transformer import Trace, Transformer
from llama3.sampler import SamplingParams
from llama3.text import TextStream, check_stops
from llama3.tokenizer import Tokenizer

MAX_TOKENS = 256  # the default of the hosted model


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
    logprob: float | None  # natural log, of the model's own distribution; None unless asked for
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


class Stream(Iterator[Piece]):
    """An answer as it comes into being. `close` ends it early; so does dropping it."""

    def __init__(
        self, llama: "Llama", request: Request, text: TextStream, on_prompt: Callable[[int, int], None] | None = None
    ):
        self._llama, self._request, self._text, self._on_prompt = llama, request, text, on_prompt
        self._inbox = llama._submit(request)
        self._ended: FinishReason | None = None  # by the text, or by the caller; the engine may not know it yet
        self.seed = request.sampling.seed

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._ended or self._request.finish_reason

    @property
    def tokens(self) -> list[int]:
        return self._request.tokens

    @property
    def usage(self) -> Usage:
        return Usage(len(self._request.prompt), len(self.tokens))

    def __next__(self) -> Piece:
        while not self._inbox:
            if self.finish_reason:
                raise StopIteration
            before = self._request.prompt_done
            self._llama._crank()
            if self._on_prompt and self._request.prompt_done > before:
                self._on_prompt(self._request.prompt_done, len(self._request.prompt))
        event = self._inbox.popleft()
        if event.sample is None:
            raise event.request.error or Llama3Error(f"the request ended: {event.finish_reason}")
        sample, reason = event.sample, event.finish_reason
        text = "" if reason == "stop" else self._text.push(sample.token)
        if self._text.stopped:
            self.close(reason := "stop")
        elif reason:
            text += self._text.flush()
        return Piece(text, sample.token, sample.logprob, sample.top, reason)

    def close(self, reason: FinishReason = "cancelled") -> None:
        if not self.finish_reason or self._inbox:
            self._ended = reason
            self._inbox.clear()
            self._llama._abandoned.append(self._request)

    def __del__(self) -> None:
        if hasattr(self, "seed"):  # else the constructor has raised
            self.close()

    def completion(self) -> Completion:
        """Run to the end."""
        pieces = list(self)
        assert self.finish_reason is not None
        text = "".join(piece.text for piece in pieces)
        return Completion(text, self.tokens, self.finish_reason, self.usage, self.seed, pieces)


class Llama:
    """A loaded model. Threads may share it: their requests run in one batch if there are slots for them."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", slots: int = 1):
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer: Tokenizer | None = checkpoint.tokenizer
        self.device = check_device(device)
        self.model = Transformer(checkpoint.config, checkpoint.weights)
        self._engine = Engine(self.model, slots)
        self._inboxes: dict[Request, deque[Event]] = {}
        self._abandoned: deque[Request] = deque()  # `__del__` may come at any moment, so it takes no lock
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str | Path | None = None, device: str = "cpu", slots: int = 1) -> "Llama":
        """A folder, or a name on the Hugging Face hub ("meta-llama/Meta-Llama-3-8B-Instruct"), or None: the demo.

        Weights are read through the file system's cache as they are first used. `slots`: how many requests run at
        once; each takes cache memory of its own. Raises CheckpointError, TokenizerError or DownloadError.
        """
        check_device(device)  # before reading 16 GB
        return cls(load_folder(resolve(model)), device, slots)

    def encode(self, text: str) -> list[int]:
        """Raw text -> ids: <|begin_of_text|> first, once; the names of special tokens are special tokens."""
        tokenizer = self._need_tokenizer()
        ids = tokenizer.encode(text, allow_special=True)
        return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages ({"role", "content"}) -> ids in Llama 3's chat format, ready for the assistant's answer."""
        return encode_dialog(self._need_tokenizer(), messages)

    def logits(self, prompt: str | Sequence[int], trace: Trace | None = None) -> np.ndarray:
        """Raw logits of every position, (T, vocab_size) float32: row i predicts token i + 1.

        A long text goes through in blocks. `trace`: see `Transformer.forward`; it is called for every block.
        """
        ids = self._ids(prompt)
        check_tokens(ids, self.config.vocab_size)
        if len(ids) > self.config.max_seq_len:
            raise RequestError(f"the text has {len(ids)} tokens; the context window holds {self.config.max_seq_len}")
        cache = self.model.new_cache(1, len(ids))
        slot = cache.allocate()
        blocks = [ids[i : i + PROMPT_ROWS] for i in range(0, len(ids), PROMPT_ROWS)]
        return np.concatenate(
            [self.model.forward(Batch.of([(slot, block)]), cache, np.arange(len(block)), trace) for block in blocks]
        )

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = MAX_TOKENS,
        stop: str | Sequence[str] = (),
        on_prompt: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> Stream:
        """Continue raw text, or token ids as they are, a token at a time.

        sampling: the fields of `SamplingParams` (temperature, top_p, top_k, min_p, seed, repetition_penalty,
        frequency_penalty, presence_penalty, logprobs). `on_prompt(done, total)` is called while the prompt is read.
        Raises RequestError before the first token if the prompt or a parameter is not acceptable.
        """
        unknown = sampling.keys() - SamplingParams.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(["max_tokens", "stop", *SamplingParams.__dataclass_fields__])
            raise RequestError(f"no such parameter: {', '.join(sorted(unknown))}; there are {known}")
        text = TextStream(self.tokenizer, check_stops(stop))
        request = Request(self._ids(prompt), SamplingParams(**sampling), max_tokens, self.checkpoint.stop_ids)
        return Stream(self, request, text, on_prompt)

    def generate(self, prompt: str | Sequence[int], **parameters: Any) -> Completion:
        """`stream`, run to its end."""
        return self.stream(prompt, **parameters).completion()

    def stream_chat(self, messages: Sequence[Message], **parameters: Any) -> Stream:
        """The assistant's answer to a dialogue, a token at a time. Parameters as for `stream`."""
        return self.stream(self.encode_chat(messages), **parameters)

    def chat(self, messages: Sequence[Message], **parameters: Any) -> Completion:
        """`stream_chat`, run to its end."""
        return self.stream_chat(messages, **parameters).completion()

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.encode(prompt)
        if isinstance(prompt, list | tuple | np.ndarray):
            return list(prompt)
        raise RequestError(f"the prompt is {type(prompt).__name__}; expected text or a list of token ids")

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(f"{self.checkpoint.path} has no tokenizer: give token ids instead of text")
        return self.tokenizer

    def _submit(self, request: Request) -> deque[Event]:
        with self._lock:
            self._engine.submit(request)
            return self._inboxes.setdefault(request, deque())

    def _crank(self) -> None:
        """One step for all requests. Another thread may have turned the crank while this one waited for the lock."""
        with self._lock:
            while self._abandoned:
                self._engine.cancel(self._abandoned[0])
                self._inboxes.pop(self._abandoned.popleft(), None)
            for event in self._engine.step():
                self._inboxes[event.request].append(event)
                if event.finish_reason:
                    del self._inboxes[event.request]


def check_device(device: str) -> str:
    """ "auto" or "cpu" -> "cpu"; anything else is a RequestError."""
    if device not in ("auto", "cpu"):
        raise RequestError(f"device is {device!r}; this version computes on 'cpu' alone")
    return "cpu"
