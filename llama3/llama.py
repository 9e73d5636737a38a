"""The Python API: `Llama` loads a checkpoint, then computes logits, generates, streams and chats."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakSet

import numpy as np

from llama3 import prefix as prefixes
from llama3.chat import Message, encode_dialog
from llama3.checkpoint import Checkpoint, load_adapter, load_folder, resolve
from llama3.completion import Completion
from llama3.constraint import Constraint, schema_grammar
from llama3.cpu_model import CpuModel
from llama3.cuda import check_device, numbers_of
from llama3.engine import Cache, Engine, Model
from llama3.errors import DeviceError, RequestError
from llama3.logit_hooks import LogitsProcessor, adjustment
from llama3.model.batch import Batch
from llama3.model.linear_choice import choose_linear
from llama3.model.lora import Adapter
from llama3.model.transformer import Trace
from llama3.request import Request, at_least_1, checked_tokens
from llama3.sampling_params import SamplingParams
from llama3.stream import Stream
from llama3.text import TextStream, check_stop_ids, check_stops
from llama3.tokenizer import Tokenizer
from llama3.tools import prepare, render_messages
from llama3.trace import Recorder
from llama3.turns import Turns

PARAMETERS = (
    "max_tokens", "stop", "stop_ids", "json_schema", "grammar", "lora", "on_prompt", "logit_bias", "logits_processor",
    *SamplingParams.__dataclass_fields__,
)  # fmt: skip

# Tokens in a forward pass of `logits` and `save_prefix`. It is the same on each device and beside any other requests,
# because the rounding of a row depends on the number of rows that are computed together.
FORWARD_CHUNK = 512


class Llama:
    """A loaded model. Threads may share it: their requests run in one batch, as many at once as there are slots."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        slots: int = 1,
        on_upload: Callable[[int, int], None] | None = None,
        lora: Mapping[str, str | Path] | None = None,
        linear: str | None = None,
        activations: str = "float32",
        rope_angles: str = "float64",
    ):
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer: Tokenizer | None = checkpoint.tokenizer
        slots = at_least_1("slots", slots)
        self._adapters = {name: load_adapter(folder, checkpoint.config) for name, folder in (lora or {}).items()}
        self.adapters = tuple(self._adapters)  # names of the LoRA adapters
        cpu = linear, activations
        self.device, self.model = open_model(
            checkpoint, check_device(device), slots, on_upload, self._adapters, cpu, rope_angles
        )
        self._engine, self._turns = Engine(self.model, slots), Turns()
        _llamas.add(self)

    def __repr__(self) -> str:
        slots = len(self._engine.slot_requests)
        return (
            f"<Llama: {self.checkpoint.path.absolute().name} on {self.device}, "
            f"{self.checkpoint.parameters:,} parameters, {slots} slot{'s' * (slots != 1)}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Llama cannot be pickled: it holds memory-mapped weights, threads' locks and a KV cache; "
            f"call Llama.load({str(self.checkpoint.path)!r}) in the other process instead"
        )

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        device: str = "cpu",
        slots: int = 1,
        on_upload: Callable[[int, int], None] | None = None,
        lora: Mapping[str, str | Path] | None = None,
        linear: str | None = None,
        activations: str = "float32",
        rope_angles: str = "float64",
    ) -> "Llama":
        """Load a folder, a name on the Hugging Face hub ("meta-llama/Meta-Llama-3-8B-Instruct"), or None: the demo.

        device: "cpu", "cuda", "cuda:1" for the second GPU, or "auto" for a GPU if the model can run on one;
        "cuda:0-3" shares the model out among four GPUs, and "cpu:0-1" among two processes (docs/tensor_parallel.md). On
        the CPU, weights are memory-mapped and read when they are first used. On a GPU, all weights are copied now, and
        `on_upload(done, total)` is called with the number of parameters. slots: how many requests run at once; each
        slot takes memory for a KV cache of its own. lora: adapters as PEFT saves them, {"name": folder}; each
        request may name one. On the CPU only, linear: what multiplies by the weights, "numpy", "numba", "amx" or "auto"
        (docs/cpu.md); None: the environment variable LLAMA3_LINEAR, or "auto". activations: "bfloat16" rounds the input
        of each product; it needs AMX. rope_angles: "float32" rounds RoPE's angles as transformers does, to match
        its numbers after thousands of tokens. Raises CheckpointError, TokenizerError, DownloadError or DeviceError.
        """
        check_device(device)  # before reading 16 GB
        return cls(load_folder(resolve(model)), device, slots, on_upload, lora, linear, activations, rope_angles)

    def encode(self, text: str) -> list[int]:
        """Raw text -> ids. The names of special tokens in the text become these tokens.

        <|begin_of_text|> is put first unless the text begins with it. Raises RequestError if the text has it elsewhere.
        """
        tokenizer = self._need_tokenizer()
        ids = tokenizer.encode(text, allow_special=True)
        ids = ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]
        if ids.count(tokenizer.bos_id) > 1:
            raise RequestError("the text holds <|begin_of_text|> after its beginning; expected it once, or not at all")
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages ({"role", "content"}) -> ids in Llama 3's chat format, ready for the assistant's answer.

        The "tool_calls" of an assistant's message are written after its content (`llama3.tools.render_message`).
        """
        return encode_dialog(self._need_tokenizer(), render_messages(messages))

    def logits(self, prompt: str | Sequence[int], trace: Trace | None = None) -> np.ndarray:
        """Raw logits of every position, (T, vocab_size) float32: row i predicts token i + 1.

        A long text is computed in chunks. For each chunk, `trace` is called as in `Transformer.forward`.
        """
        ids = self._checked_ids(prompt)
        logits = np.empty((len(ids), self.config.vocab_size), np.float32)

        def keep(start: int, rows: np.ndarray) -> None:
            logits[start : start + len(rows)] = rows

        self._forward(ids, None, keep, trace)
        return logits

    def trace(self, prompt: str | Sequence[int], names: str | Collection[str]) -> dict[str, np.ndarray]:
        """Intermediate values of a forward pass, by name, in the order of computation: all float32.

        names: a name or several, or patterns of names, where * stands for one part and ** for anything:
        `trace("Once", ["layers.*.q_rope", "layers.0.heads.3.weights"])`. `llama3.activation_names` lists names and
        shapes. Raises RequestError for a name or a prompt that is not acceptable. Everything, "**", takes a lot of
        memory: for Llama 3 8B 9 MB a token, and 8 KB for each pair of tokens.
        """
        recorder = Recorder(names, self.config)
        self._forward(self._checked_ids(prompt), None, recorder.keep_logits if recorder.needs_rows else None, recorder)
        return recorder.values()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Collection[str] | None = None,
        stop_ids: Collection[int] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        lora: str | None = None,
        on_prompt: Callable[[int, int], None] | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logits_processor: LogitsProcessor | None = None,
        **sampling: Any,
    ) -> Stream:
        """Continue raw text, or token ids as they are, one token at a time. None is the default of every parameter.

        max_tokens: 256 by default, or what the context window leaves. stop: strings that end the answer. stop_ids:
        tokens that end it, in addition to the model's. lora: a name in `adapters`. on_prompt(done, total): called while
        the prompt is read. sampling: fields of `SamplingParams` (temperature, top_p, top_k, min_p, seed,
        repetition_penalty, frequency_penalty, presence_penalty, logprobs).

        json_schema: the answer is JSON that this JSON Schema accepts ({}: any JSON), unless max_tokens cuts it short;
        needs the extra `json`. grammar: the same with a grammar from `llama3.constraint`.

        logit_bias {token id: number}: added to the raw logits; -inf forbids a token. logits_processor(tokens, logits):
        called before each draw with the tokens of prompt and answer and the logits, (vocab_size,) float32, which it may
        change; returns the logits to use. The bias comes first, then the processor, then the penalties. Neither changes
        the reported log-probabilities. Both need the device "cpu".

        Raises RequestError before the first token if the prompt or a parameter is not acceptable.
        """
        refuse_unknown(sampling)
        self._check_lora(lora)
        for name, function in (("on_prompt", on_prompt), ("logits_processor", logits_processor)):
            if function is not None and not callable(function):
                raise RequestError(f"{name} is {type(function).__name__}; expected a function")
        text = TextStream(self.tokenizer, check_stops(stop))
        stops = self.checkpoint.stop_ids | check_stop_ids(stop_ids, self.config.vocab_size)
        request = Request(self._ids(prompt), SamplingParams(**sampling), max_tokens, stops, lora)
        request.adjust = adjustment(logit_bias, logits_processor, self.config.vocab_size)
        if request.adjust is not None and self.device.startswith("cuda"):
            name = "logit_bias" if logits_processor is None else "logits_processor"
            raise RequestError(f"{name} works on the device 'cpu' only, and this model is on {self.device!r}")
        if json_schema is not None:
            if grammar is not None:
                raise RequestError("grammar cannot be combined with json_schema; expected one of them")
            grammar = schema_grammar(json_schema)
        if grammar is not None:
            if not isinstance(grammar, str):
                raise RequestError(f"grammar is {type(grammar).__name__}; expected text from llama3.constraint")
            constraint = Constraint(self._need_tokenizer(), grammar, self.checkpoint.stop_ids, self.config.vocab_size)
            samples = request.samples  # not `request`: a reference cycle would delay its release until a collection
            request.mask = lambda: constraint.allowed([sample.token for sample in samples])
            request.forced = lambda: constraint.forced([sample.token for sample in samples])
        self._engine.submit(request)
        return Stream(request, text, self._step_or_wait, self._engine.cancel, on_prompt)

    def generate(self, prompt: str | Sequence[int], **parameters: Any) -> Completion:
        """`stream`, read to its end. Parameters as for `stream`."""
        return self.stream(prompt, **parameters).completion()

    def stream_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        **parameters: Any,
    ) -> Stream:
        """The assistant's answer to a dialogue, one token at a time. Parameters as for `stream`.

        tools: a list of {"name", "description", "parameters": a JSON Schema}, each alone or as the "function" of an
        object, as OpenAI has it. The answer is then text, or calls that `llama3.tools.read_calls` reads; a call always
        names one of the tools, and its arguments fit the schema. tool_choice: "auto", the default; "none": text;
        "required": at least one call; or the name of the tool to call.
        """
        refuse_unknown(parameters, ("tools", "tool_choice"))
        if tools is not None and tools not in ([], ()):
            if parameters.get("grammar") is not None:
                raise RequestError("grammar cannot be combined with tools, which bring their own; expected one of them")
            messages, grammar = prepare(tools, messages, "auto" if tool_choice is None else tool_choice)
            if parameters.get("json_schema") is None:  # with a schema, the answer is JSON and never a call
                parameters["grammar"] = grammar
        elif tool_choice not in (None, "auto", "none"):
            raise RequestError(f"tool_choice is {tool_choice!r}, and there are no tools; expected tools, or 'auto'")
        return self.stream(self.encode_chat(messages), **parameters)

    def chat(self, messages: Sequence[Message], **parameters: Any) -> Completion:
        """`stream_chat`, read to its end. Parameters as for `stream_chat`."""
        return self.stream_chat(messages, **parameters).completion()

    def run(self, inputs: Any) -> "dict[str, Any] | Iterator[dict[str, Any]]":
        """Answer an input object of Cloudflare Workers AI's hosted model: see `llama3.workers_ai.run`."""
        from llama3.workers_ai import run

        return run(self, inputs)

    def batch(self, requests: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Answer many requests -> their answers, in order, while later requests are in flight.

        A request is an object in the form of OpenAI's batch files, {"custom_id", "method", "url", "body"}, or an input
        object of Workers AI; docs/batch.md has both, and the answers. What is wrong with a request stands in its
        answer, and nothing is raised for it. Each slot has two requests in flight; requests are read when they are
        needed. Close the iterator to end early.
        """
        from llama3.batch import in_order
        from llama3.batch_request import Answerer

        answerer = Answerer(self)
        return in_order(requests, answerer.answer, len(self._engine.slot_requests), answerer.close)

    def save_prefix(self, path: str | Path, prompt: str | Sequence[int], lora: str | None = None) -> None:
        """Compute the keys and values of a prompt and write them to a file, for `load_prefix`.

        lora: the adapter to compute them with. Raises RequestError for a prompt or an adapter that is not acceptable,
        and if the file cannot be written.
        """
        self._check_lora(lora)
        ids = self._checked_ids(prompt)
        cache = self._forward(ids, lora)
        adapter = self._adapters[lora] if lora is not None else None
        k, v = cache.read(0)
        prefixes.save(path, prefixes.Prefix(np.array(ids, np.int64), k, v, prefixes.identity(self.checkpoint, adapter)))

    def load_prefix(self, path: str | Path) -> list[int]:
        """Put a saved prompt into a free slot, for later prompts that begin with its tokens. Returns these tokens.

        Raises CheckpointError if another model, or an adapter that is not loaded, made the file. Raises RequestError if
        no slot is free.
        """
        prefix = prefixes.read(path)
        prefixes.check(path, prefix, prefixes.identity(self.checkpoint, None), self.config, self._engine.cache.dtype)
        adapter, tokens = prefixes.adapter_name(path, prefix, self._adapters), prefix.tokens.tolist()
        self._turns.run(lambda: self._engine.restore(tokens, adapter, prefix.k, prefix.v))
        return tokens

    def _forward(
        self,
        ids: list[int],
        lora: str | None,
        keep: Callable[[int, np.ndarray], None] | None = None,
        trace: Trace | None = None,
    ) -> Cache:
        """Run tokens in chunks -> a cache of one slot, which holds their keys and values.

        keep(start, logits): called with the logits of each chunk. If it is None, no logits are computed.
        """
        cache: Cache = self.model.new_cache(1, len(ids))

        def run(start: int) -> None:
            batch = Batch.of([(0, ids[start : start + FORWARD_CHUNK])], [lora])
            rows = self.model.forward(batch, cache, np.arange(len(batch.tokens) if keep else 0), trace)
            if keep:
                keep(start, rows)

        for start in range(0, len(ids), FORWARD_CHUNK):
            self._turns.run(partial(run, start))
        return cache

    def _check_lora(self, lora: str | None) -> None:
        if lora is not None and lora not in self.adapters:
            raise RequestError(f"there is no adapter {lora!r}; loaded: {', '.join(self.adapters) or 'none'}")

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return self.encode(prompt)
        if isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, bytes | bytearray):
            return list(prompt)
        raise RequestError(f"the prompt is {type(prompt).__name__}; expected text or a list of token ids")

    def _checked_ids(self, prompt: str | Sequence[int]) -> list[int]:
        ids = checked_tokens(self._ids(prompt), self.config.vocab_size)
        if len(ids) > self.config.max_seq_len:
            raise RequestError(f"the text has {len(ids)} tokens; the context window holds {self.config.max_seq_len}")
        return ids

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(f"{self.checkpoint.path} has no tokenizer: give token ids instead of text")
        return self.tokenizer

    def _step_or_wait(self, ready: Callable[[], bool]) -> None:
        """Run one step for all requests. While another thread runs one, wait; return as soon as `ready()` is true."""
        self._turns.run(self._engine.step, ready)

    def _after_fork(self) -> None:
        """Reset the state in a forked child, where the threads that wait for answers do not exist."""
        lost = DeviceError(f"the model on {self.device} was loaded before a fork; load it in the new process")
        self._turns.after_fork(lost if self.device != "cpu" else None)
        self._engine.abandon(RequestError("this answer was begun before a fork: it goes on in the parent process only"))


_llamas: WeakSet[Llama] = WeakSet()


def _after_fork() -> None:
    for llama in list(_llamas):
        llama._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def refuse_unknown(given: Collection[str], more: tuple[str, ...] = ()) -> None:
    """Raises RequestError for a name that is neither in PARAMETERS nor in `more`, and lists the known names."""
    known = (*more, *PARAMETERS)
    if unknown := sorted(set(given) - set(known)):
        raise RequestError(f"no such parameter: {', '.join(unknown)}; there are {', '.join(known)}")


def open_model(
    checkpoint: Checkpoint,
    device: str,
    slots: int,
    on_upload: Callable[[int, int], None] | None,
    adapters: Mapping[str, Adapter],
    cpu: tuple[str | None, str],
    rope_angles: str,
) -> tuple[str, Model]:
    """-> (the name of the device, the model on it). `CpuModel` and the CUDA model have the same interface.

    cpu: `linear` and `activations` of `Llama.load`, which only a model on the CPU takes.
    """
    kind, numbers = numbers_of(device)
    if kind != "cpu":
        from llama3.cuda.load import best_device, load_model

        if len(numbers) > 1:
            from llama3.tensor_parallel.gpu import load_model as load_ranks

            return device, load_ranks(device, checkpoint, slots, on_upload, adapters, rope_angles)

        device = best_device(checkpoint, slots) if device == "auto" else device
        if device != "cpu":
            return device, load_model(device, checkpoint, slots, on_upload, adapters, rope_angles)
    linear = choose_linear(checkpoint.weights, *cpu)
    if len(numbers) > 1:
        from llama3.tensor_parallel.cpu import FirstRank

        return device, FirstRank(device, len(numbers), checkpoint, adapters, linear, rope_angles)
    return device, CpuModel(checkpoint.config, checkpoint.weights, adapters, linear, rope_angles)
