"""`inspect`: generate an answer, compute the whole text once more, and keep the activations that are worth showing.

The answer comes from the fast model. The activations come from `plain.forward`, in float64, one matrix at a time; so a
model whose weights are larger than memory is inspected too, slowly. What is kept is small: attention weights, norms,
and the likely tokens at each point of the residual stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llama3 import plain
from llama3.chat import Message
from llama3.completion import Completion
from llama3.config import ModelConfig
from llama3.cpu_model import CpuModel
from llama3.errors import RequestError
from llama3.inspect.cost import Operation, measure
from llama3.inspect.lens import Lens, in_pieces, read_lens
from llama3.inspect.steps import Step, choose_steps
from llama3.inspect.without import Ablation, Part, all_parts, check_part, same_beginning, switch_off
from llama3.llama import Llama
from llama3.model.weights import Weights
from llama3.sampling_params import SamplingParams

MAX_TOKENS = 64  # of an answer, unless the caller says otherwise
MEMORY = 1 << 30  # bytes: the attention weights of all heads may take as much
SMALL = 10**8  # parameters: of a model with no more, each part is switched off in turn


@dataclass(frozen=True)
class Token:
    id: int
    text: str
    bytes: bytes
    special: bool


@dataclass(frozen=True, repr=False)
class Inspection:
    """What was seen. T tokens: those of the prompt, then those of the answer without its stop token."""

    model: str
    config: ModelConfig
    tokens: list[Token]  # T
    n_prompt: int
    answer: Completion
    params: SamplingParams
    steps: list[Step]  # one for each token of the answer, and one for the stop token
    attention: np.ndarray  # (n_layers, n_heads, T, T) float32: row i are the weights of position i on 0 to i
    lens: Lens
    norms: np.ndarray  # (S, T) float32: the root mean square of the residual stream at the points of the lens
    vocabulary: dict[int, str]  # the texts of all tokens that the steps and the lens name
    ablations: list[Ablation] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)  # empty for a model that is not on the CPU

    def __repr__(self) -> str:
        return f"<Inspection of {self.model}: {self.n_prompt} tokens of prompt, {len(self.tokens)} in all>"


def inspect(
    llama: Llama,
    prompt: str | Sequence[int] | Sequence[Message],
    without: Sequence[Part] = (),
    *,
    each: bool = False,
    max_tokens: int | None = None,
    **parameters: Any,
) -> Inspection:
    """Answer a prompt and look inside. prompt: as for `Llama.stream`, or messages as for `Llama.chat`.

    without: parts (layer, head) or (layer, "ffn") to switch off together, for a second answer. each: also switch off
    each part alone, if the model is small. parameters: fields of `SamplingParams`. Raises RequestError
    for a part that the model lacks, a parameter or a prompt that is not acceptable, and a text that is too long.
    """
    for part in without:
        check_part(part, llama.config)
    params = _sampling(parameters)
    ids = _ids(llama, prompt)
    _check_length(len(ids) + 1, llama.config)
    answer = llama.generate(ids, max_tokens=MAX_TOKENS if max_tokens is None else max_tokens, **parameters)
    tokens = [*ids, *answer.tokens]
    _check_length(len(tokens), llama.config)
    drawn = [piece.token for piece in answer.pieces]  # with the stop token
    params = replace(params, seed=answer.seed)

    weights = llama.checkpoint.weights
    stream, attention, normed = see_inside(tokens, llama.config, weights)
    logits = in_pieces(normed[len(ids) - 1 :][: len(drawn)], weights.output)  # (len(drawn), vocab_size)
    steps = choose_steps(logits.astype(np.float32), drawn, ids, params)
    lens = read_lens(stream, tokens, llama.config, weights)
    norms = np.array([np.sqrt(np.mean(x**2, axis=1)) for x in stream.values()], np.float32)  # (S, T)
    loss = -float(np.mean([np.log(max(step.probability, 1e-300)) for step in steps]))
    groups = [list(without)] if without else []
    if each and llama.checkpoint.parameters <= SMALL:
        groups += [[part] for part in all_parts(llama.config) if [part] not in groups]
    return Inspection(
        model=llama.checkpoint.path.absolute().name,
        config=llama.config,
        tokens=[_token(llama, token) for token in tokens],
        n_prompt=len(ids),
        answer=answer,
        params=params,
        steps=steps,
        attention=attention,
        lens=lens,
        norms=norms,
        vocabulary=_texts(llama, {*lens.tokens.ravel().tolist(), *(t for step in steps for t in step.rivals)}),
        ablations=[ablate(llama, ids, answer, group, params, loss) for group in groups],
        operations=(measure(llama.model, weights, tokens) if isinstance(llama.model, CpuModel) else []),
    )


def see_inside(
    tokens: Sequence[int], config: ModelConfig, weights: Weights
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """-> residual stream (T, dim) at each point, attention weights (L, H, T, T), output of the final norm (T, dim).

    All are computed in float64; the first two are kept as float32, since with the 8B they take a gigabyte or more.
    No logits are computed: a matrix for the output in float64 would take 4 GB.
    """
    T = len(tokens)
    stream: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    attention = np.zeros((config.n_layers, config.n_heads, T, T), np.float32)

    def see(name: str, value: np.ndarray) -> None:
        parts = name.split(".")
        if name == "norm":
            seen[name] = value
        elif name == "tok_embeddings" or parts[-1] == "attention_residual" or len(parts) == 2:
            stream[name] = value.astype(np.float32)
        elif parts[-1] == "weights":
            attention[int(parts[1]), int(parts[3])] = value

    plain.forward(tokens, config, replace(weights, output=weights.output[:1]), see)
    return stream, attention, seen["norm"]


def ablate(
    llama: Llama, ids: list[int], answer: Completion, parts: list[Part], params: SamplingParams, loss: float
) -> Ablation:
    """The answer of the model without these parts, with the same random numbers, and no longer than the whole one's.

    loss: of the whole model's answer in the whole model, in nats a token.
    """
    weights = switch_off(llama.checkpoint.weights, parts, llama.config)
    other = Llama(replace(llama.checkpoint, weights=weights))
    drawn = [piece.token for piece in answer.pieces]
    found = other.generate(ids, max_tokens=len(drawn), **vars(params))
    rows = other.logits([*ids, *drawn])[len(ids) - 1 : -1].astype(np.float64)  # (n, vocab_size)
    rows -= rows.max(axis=1, keepdims=True)
    logs = rows[np.arange(len(drawn)), drawn] - np.log(np.exp(rows).sum(axis=1))  # (n,)
    return Ablation(parts, found.tokens, found.text, same_beginning(found.tokens, answer.tokens), -logs.mean() - loss)


def _ids(llama: Llama, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return llama.encode(prompt)
    prompt = list(prompt)
    return llama.encode_chat(prompt) if prompt and isinstance(prompt[0], dict) else prompt


def _sampling(parameters: dict[str, Any]) -> SamplingParams:
    """A grammar or a bias would change the logits before the stages that a step shows, so they are refused."""
    known = SamplingParams.__dataclass_fields__
    if unknown := sorted(parameters.keys() - known.keys()):
        raise RequestError(f"inspect takes no {', '.join(unknown)}; expected max_tokens, {', '.join(known)}")
    return SamplingParams(**parameters)


def _check_length(n: int, config: ModelConfig) -> None:
    most = int((MEMORY / 4 / config.n_layers / config.n_heads) ** 0.5)
    if n > most:
        raise RequestError(f"the text has {n} tokens; the attention weights of at most {most} fit into memory")


def _texts(llama: Llama, tokens: set[int]) -> dict[int, str]:
    return {token: _token(llama, token).text for token in sorted(tokens)}


def _token(llama: Llama, token: int) -> Token:
    """A token that the tokenizer lacks has no bytes: an embedding may have more rows than there are tokens."""
    tokenizer = llama.tokenizer
    if tokenizer is None or token not in tokenizer:
        return Token(token, f"<{token}>", b"", False)
    piece = tokenizer.token_bytes(token)
    return Token(token, piece.decode("utf-8", "backslashreplace"), piece, token in set(tokenizer.special.values()))
