"""The Python API: `Llama` loads a checkpoint, then computes logits, generates, streams and chats."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama3.chat import Message, encode_dialog
from llama3.checkpoint import Checkpoint, load_adapter, load_folder, resolve
from llama3.completion import Completion, Piece, Usage
from llama3.constraint import Constraint, schema_grammar
from llama3.cpu_model import CpuModel
from llama3.cuda import check_device
from llama3.engine import MAX_TOKENS, PREFILL_CHUNK, Engine, FinishReason, Model, Request, check_tokens
from llama3.errors import Llama3Error, RequestError
from llama3.model.batch import Batch
from llama3.model.lora import Adapter
from llama3.model.transformer import Trace
from llama3.sampling_params import SamplingParams
from llama3.text import TextStream, check_stops
from llama3.tokenizer import Tokenizer
from llama3.tools import prepare, render_messages


class Stream(Iterator[Piece]):
    """An answer, token by token as it is generated. `close` ends it early, and so does dropping the last reference."""

    def __init__(
        self, llama: "Llama", request: Request, text: TextStream, on_prompt: Callable[[int, int], None] | None = None
    ):
        self._llama, self._request, self._text, self._on_prompt = llama, request, text, on_prompt
        self._read = 0  # how many of the request's samples were read; steps for other streams may have drawn more
        self.finish_reason: FinishReason | None = None
        self.seed: int = request.params.seed  # type: ignore[assignment]  # `submit` has set it

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
            self._llama._step_or_wait(lambda: len(request.samples) > self._read or bool(request.finish_reason))
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

    def close(self, reason: FinishReason = "cancelled") -> None:
        """End the generation now and free its slot. Nothing happens if it has ended already."""
        self.finish_reason = self.finish_reason or reason
        self._llama._engine.cancel(self._request)

    def __del__(self) -> None:
        self.close()

    def completion(self) -> Completion:
        """Generate the rest, and return the whole answer."""
        pieces = list(self)
        assert self.finish_reason is not None
        text = "".join(piece.text for piece in pieces)
        return Completion(text, self.tokens, self.finish_reason, self.usage, self.seed, pieces)


class Llama:
    """A loaded model. Threads may share it: their requests run in one batch, as many at once as there are slots."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        slots: int = 1,
        on_upload: Callable[[int, int], None] | None = None,
        lora: Mapping[str, str | Path] | None = None,
    ):
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer: Tokenizer | None = checkpoint.tokenizer
        adapters = {name: load_adapter(folder, checkpoint.config) for name, folder in (lora or {}).items()}
        self.adapters = tuple(adapters)  # names of the LoRA adapters
        self.device, self.model = open_model(checkpoint, check_device(device), slots, on_upload, adapters)
        self._engine = Engine(self.model, slots)
        self._step_ended = threading.Condition()
        self._stepping_thread: int | None = None  # identifier of the thread that runs a step now

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        device: str = "cpu",
        slots: int = 1,
        on_upload: Callable[[int, int], None] | None = None,
        lora: Mapping[str, str | Path] | None = None,
    ) -> "Llama":
        """Load a folder, a name on the Hugging Face hub ("meta-llama/Meta-Llama-3-8B-Instruct"), or None: the demo.

        device: "cpu", "cuda", "cuda:1" for the second GPU, or "auto" for a GPU if the model can run on one. On the CPU,
        weights are memory-mapped and read when they are first used. On a GPU, all weights are copied now, and
        `on_upload(done, total)` is called with the number of parameters. slots: how many requests run at once; each
        slot takes memory for a KV cache of its own. lora: adapters as PEFT saves them, {"name": folder}; each
        request may name one. Raises CheckpointError, TokenizerError, DownloadError or DeviceError.
        """
        check_device(device)  # before reading 16 GB
        return cls(load_folder(resolve(model)), device, slots, on_upload, lora)

    def encode(self, text: str) -> list[int]:
        """Raw text -> ids. The names of special tokens in the text become these tokens.

        <|begin_of_text|> is put first unless the text begins with it. Raises RequestError if it stands anywhere else.
        """
        tokenizer = self._need_tokenizer()
        ids = tokenizer.encode(text, allow_special=True)
        ids = ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]
        if ids.count(tokenizer.bos_id) > 1:
            raise RequestError("the text holds <|begin_of_text|> after its beginning; expected it once, or not at all")
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages ({"role", "content"}) -> ids in Llama 3's chat format, ready for the assistant's answer.

        The "tool_calls" of an assistant's message are written behind its content (`llama3.tools.render_message`).
        """
        return encode_dialog(self._need_tokenizer(), render_messages(messages))

    def logits(self, prompt: str | Sequence[int], trace: Trace | None = None) -> np.ndarray:
        """Raw logits of every position, (T, vocab_size) float32: row i predicts token i + 1.

        A long text is computed in chunks. `trace` is called as in `Transformer.forward`, for each chunk anew.
        """
        ids = self._ids(prompt)
        check_tokens(ids, self.config.vocab_size)
        if len(ids) > self.config.max_seq_len:
            raise RequestError(f"the text has {len(ids)} tokens; the context window holds {self.config.max_seq_len}")
        cache = self.model.new_cache(1, len(ids))
        slot = cache.allocate()
        logits = np.empty((len(ids), self.config.vocab_size), np.float32)
        for i in range(0, len(ids), PREFILL_CHUNK):
            batch = Batch.of([(slot, ids[i : i + PREFILL_CHUNK])])
            logits[i : i + PREFILL_CHUNK] = self.model.forward(batch, cache, np.arange(len(batch.tokens)), trace)
        return logits

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = MAX_TOKENS,
        stop: str | Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        lora: str | None = None,
        on_prompt: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> Stream:
        """Continue raw text, or token ids as they are, one token at a time.

        json_schema: the answer is JSON that this JSON Schema accepts ({}: any JSON), unless max_tokens cuts it short;
        needs the extra `json`. grammar: the same with a grammar from `llama3.constraint`. lora: a name in `adapters`.
        on_prompt(done, total): called while the prompt is read. sampling: fields of `SamplingParams` (temperature,
        top_p, top_k, min_p, seed, repetition_penalty, frequency_penalty, presence_penalty, logprobs).

        Raises RequestError before the first token if the prompt or a parameter is not acceptable.
        """
        unknown = sampling.keys() - SamplingParams.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(["max_tokens", "stop", "json_schema", "lora", *SamplingParams.__dataclass_fields__])
            raise RequestError(f"no such parameter: {', '.join(sorted(unknown))}; there are {known}")
        if lora is not None and lora not in self.adapters:
            raise RequestError(f"there is no adapter {lora!r}; loaded: {', '.join(self.adapters) or 'none'}")
        text = TextStream(self.tokenizer, check_stops(stop))
        request = Request(self._ids(prompt), SamplingParams(**sampling), max_tokens, self.checkpoint.stop_ids, lora)
        grammar = schema_grammar(json_schema) if json_schema is not None else grammar
        if grammar is not None:
            constraint = Constraint(self._need_tokenizer(), grammar, self.checkpoint.stop_ids, self.config.vocab_size)
            samples = request.samples  # not `request`: a reference cycle would delay its release until a collection
            request.mask = lambda: constraint.allowed([sample.token for sample in samples])
            request.forced = lambda: constraint.forced([sample.token for sample in samples])
        self._engine.submit(request)
        return Stream(self, request, text, on_prompt)

    def generate(self, prompt: str | Sequence[int], **parameters: Any) -> Completion:
        """`stream`, read to its end. Parameters as for `stream`."""
        return self.stream(prompt, **parameters).completion()

    def stream_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str = "auto",
        **parameters: Any,
    ) -> Stream:
        """The assistant's answer to a dialogue, one token at a time. Parameters as for `stream`.

        tools: a list of {"name", "description", "parameters": a JSON Schema}, each alone or as the "function" of an
        object, as OpenAI has it. The answer is then text, or calls that `llama3.tools.read_calls` reads; a call always
        names one of the tools, and its arguments fit the schema. tool_choice: "auto"; "none": text; "required": at
        least one call; or the name of the tool to call.
        """
        if tools or tool_choice not in ("auto", "none"):
            messages, parameters["grammar"] = prepare(tools, messages, tool_choice)
        return self.stream(self.encode_chat(messages), **parameters)

    def chat(self, messages: Sequence[Message], **parameters: Any) -> Completion:
        """`stream_chat`, read to its end. Parameters as for `stream_chat`."""
        return self.stream_chat(messages, **parameters).completion()

    def run(self, inputs: Any) -> "dict[str, Any] | Iterator[dict[str, Any]]":
        """Answer an input object of Cloudflare Workers AI's hosted model: see `llama3.workers_ai.run`."""
        from llama3.workers_ai import run

        return run(self, inputs)

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

    def _step_or_wait(self, ready: Callable[[], bool]) -> None:
        """Run one step for all requests. If another thread is running one, wait for its end.

        After the wait, return without a step if `ready()` is true.
        """
        me = threading.get_ident()
        with self._step_ended:
            while self._stepping_thread not in (None, me):  # `me`: Ctrl-C interrupted this thread's last step
                self._step_ended.wait()
                if ready():
                    return
            self._stepping_thread = me
        try:
            self._engine.step()
        finally:
            with self._step_ended:
                self._stepping_thread = None
                self._step_ended.notify_all()


def open_model(
    checkpoint: Checkpoint,
    device: str,
    slots: int,
    on_upload: Callable[[int, int], None] | None,
    adapters: Mapping[str, Adapter],
) -> tuple[str, Model]:
    """-> (the name of the device, the model on it). `CpuModel` and the CUDA model have the same interface."""
    if device != "cpu":
        from llama3.cuda.load import best_device, load_model

        device = best_device(checkpoint, slots) if device == "auto" else device
        if device != "cpu":
            return device, load_model(device, checkpoint, slots, on_upload, adapters)
    return device, CpuModel(checkpoint.config, checkpoint.weights, adapters)
