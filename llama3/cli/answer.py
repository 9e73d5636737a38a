"""Write an answer to standard output while it is generated, and measure how long it takes."""

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING

from llama3.cli.terminal import per_second, progress, show

if TYPE_CHECKING:
    from llama3.completion import Piece
    from llama3.llama import Llama
    from llama3.stream import Stream


class Answer:
    """One answer while it is generated. If Ctrl-C ends `write`, `text` and the figures cover what was shown."""

    def __init__(self, llama: "Llama", quiet: bool, silent: bool = False):
        """quiet: show no progress bar while the prompt is read. silent: write no text to standard output."""
        self.llama, self.quiet, self.silent = llama, quiet, silent
        self.text = ""
        self.pieces: list[Piece] = []
        self.started = self.first = self.last = perf_counter()
        self._bar = ExitStack()
        self._report: Callable[[int], None] = lambda done: None

    def on_prompt(self, done: int, total: int) -> None:
        """Update the progress bar of the prompt: the callback for `Llama.stream`."""
        self._report(done)

    def write(self, stream: "Stream") -> None:
        """Run the stream to its end. The output ends with a newline, even after an error or Ctrl-C."""
        self.stream, prompt_tokens = stream, stream.usage.prompt_tokens
        self.started = perf_counter()
        if prompt_tokens > self.llama.model.prefill_chunk:  # a shorter prompt is read in a single step
            bar = progress("reading the prompt", prompt_tokens, " tokens", self.quiet)
            self._report = self._bar.enter_context(bar)
        try:
            for piece in stream:
                self.last = perf_counter()
                if not self.pieces:
                    self.first = self.last
                    self._bar.close()
                self.pieces.append(piece)
                self.text += piece.text
                if not self.silent:
                    show(piece.text)
        finally:
            self._bar.close()
            stream.close()
            if not self.silent and not self.text.endswith("\n"):
                show("\n")

    @property
    def answer_rate(self) -> str:
        """Tokens per second. The first token is left out, since its time is spent on reading the prompt."""
        return per_second(len(self.pieces) - 1, self.last - self.first)

    @property
    def window_is_full(self) -> bool:
        return self.stream.usage.total_tokens == self.llama.config.max_seq_len

    def short_figures(self) -> str:
        """One line for `chat`. It leaves out the prompt, most of which is already in the KV cache."""
        rate = f", {self.answer_rate}" if len(self.pieces) > 1 else ""
        cut_off = "; the context window is full" if self.window_is_full else "; cut off by max_tokens"
        ended = {"length": cut_off, "cancelled": "; stopped"}.get(str(self.stream.finish_reason), "")
        return f"({self.stream.usage.completion_tokens} tokens{rate}, seed {self.stream.seed}{ended})"

    def figures(self, model: str) -> str:
        """Two lines for standard error: token counts and speeds; then finish reason, seed and model."""
        usage, first = self.stream.usage, self.first - self.started
        rate = f", {self.answer_rate}" if len(self.pieces) > 1 else ""
        reason = str(self.stream.finish_reason)
        if reason == "length":
            reason += " (the context window is full)" if self.window_is_full else " (--max-tokens)"
        return (
            f"prompt {usage.prompt_tokens} tokens, {per_second(usage.prompt_tokens, first)}; "
            f"answer {usage.completion_tokens} tokens{rate}; first token after {first:.2f} s\n"
            f"finished: {reason}; seed {self.stream.seed}; {model}"
        )
