"""`Stream`: an answer while it is generated, one token at a time, for `for` and for `async for`."""

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from llama3.completion import Completion, Piece, Usage
from llama3.errors import Llama3Error
from llama3.request import FinishReason, Request
from llama3.text import TextStream


class Stream(Iterator[Piece], AsyncIterator[Piece]):
    """An answer, token by token as it is generated. `close` ends it early, and so does dropping the last reference.

    `async for` waits for each token in a separate thread of the stream, so the event loop is not blocked. A task that
    is cancelled while it waits closes the stream.
    """

    def __init__(
        self,
        request: Request,
        text: TextStream,
        advance: Callable[[Callable[[], bool]], None],
        cancel: Callable[[Request], None],
        on_prompt: Callable[[int, int], None] | None = None,
    ):
        # advance: runs a step or, while another thread does, waits until its argument returns true or it can run one
        self._request, self._text, self._on_prompt = request, text, on_prompt
        self._advance, self._cancel = advance, cancel
        self._read = 0  # samples that were read; steps that other threads ran may have drawn more
        self._thread: ThreadPoolExecutor | None = None  # in which `async for` waits
        self.finish_reason: FinishReason | None = None
        self.seed: int = request.params.seed  # type: ignore[assignment]  # `submit` has set it
        self.max_tokens: int = request.max_tokens  # type: ignore[assignment]  # never None: `submit` has set it

    def __repr__(self) -> str:
        usage = self.usage
        return (
            f"<Stream: {usage.completion_tokens} of at most {self.max_tokens} tokens read, "
            f"prompt {usage.prompt_tokens} tokens, seed {self.seed}, finish_reason {self.finish_reason!r}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled: send its pieces, or its completion(), to the other process")

    @property
    def tokens(self) -> list[int]:
        """The tokens that were read so far, without the stop token."""
        tokens = [sample.token for sample in self._request.samples[: self._read]]
        return tokens[:-1] if tokens and tokens[-1] in self._request.stop_ids else tokens

    @property
    def usage(self) -> Usage:
        """The numbers of tokens so far."""
        return Usage(len(self._request.prompt), len(self.tokens))

    def __next__(self) -> Piece:
        request = self._request
        while self._read == len(request.samples) and not (self.finish_reason or request.finish_reason):
            before = request.prompt_done
            self._advance(lambda: len(request.samples) > self._read or bool(request.finish_reason))
            if self._on_prompt and request.prompt_done > before:
                self._on_prompt(request.prompt_done, len(request.prompt))
        if self.finish_reason:
            raise StopIteration
        if self._read == len(request.samples):
            self.finish_reason = request.finish_reason
            raise request.error or Llama3Error(f"the request ended: {request.finish_reason}")
        sample = request.samples[self._read]
        self._read += 1
        stops = sample.token in request.stop_ids
        text = "" if stops else self._text.push(sample.token)
        if self._text.stopped:
            self.close("stop")
        elif stops or self._read == request.max_tokens:
            text += self._text.flush()
            self.finish_reason = "stop" if stops else "length"
        return Piece(text, sample.token, sample.logprob, sample.top, self.finish_reason)

    async def __anext__(self) -> Piece:
        from asyncio import get_running_loop  # here, because most programs do not need asyncio

        if self._thread is None:  # asyncio's default pool is small: waiting streams would fill it
            self._thread = ThreadPoolExecutor(1, "llama3-stream")
        piece = None
        try:
            piece = await get_running_loop().run_in_executor(self._thread, next, self, None)
        finally:
            if piece is None:  # the end, an error, or the task was cancelled
                self.close()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self, reason: FinishReason = "cancelled") -> None:
        """End the generation now and free its slot. Nothing happens if it has ended already."""
        self.finish_reason = self.finish_reason or reason
        self._cancel(self._request)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False)

    def __del__(self) -> None:
        self.close()

    def completion(self) -> Completion:
        """Generate the rest, and return the answer. Its text and pieces lack the pieces that were read before."""
        pieces = list(self)
        assert self.finish_reason is not None
        text = "".join(piece.text for piece in pieces)
        return Completion(text, self.tokens, self.finish_reason, self.usage, self.seed, pieces)
