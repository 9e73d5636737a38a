"""The run that the tour looks at: the demo answers "What is RoPE?", computed by llama3/plain.py, with all it computes.

The pages and the notebook take their numbers from here: `from demo import *` in the folder of this file.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from numpy import ndarray as Array

from llama3 import Llama, SamplingParams, plain
from llama3.config import ModelConfig
from llama3.model.weights import Weights
from llama3.philox import uniform

QUESTION = "What is RoPE?"
LENGTH = 40  # tokens of the answer that are looked at
LLAMA_8B = ModelConfig(4096, 32, 32, 8, 128, 14336, 128_256)  # the shape of Llama 3 8B, for comparison


def in_float64(w: Weights) -> Weights:
    """The same numbers. plain.py converts them in each product, which takes longer from bfloat16."""
    layers = [replace(x, **{name: matrix.astype(np.float64) for name, matrix in vars(x).items()}) for x in w.layers]
    arrays = {name: getattr(w, name).astype(np.float64) for name in ("tok_embeddings", "norm", "output")}
    return replace(w, layers=layers, **arrays)


llama = Llama.load()
config, tokenizer = llama.config, llama.tokenizer
weights = in_float64(llama.checkpoint.weights)
prompt = llama.encode_chat([{"role": "user", "content": QUESTION}])
answer = list(llama.generate(prompt, max_tokens=LENGTH, temperature=0).tokens)
tokens = prompt + answer
last = len(prompt) - 1  # the row whose logits decide the first token of the answer


def piece(token: int) -> str:
    """The text of one token."""
    return tokenizer.decode([token])


def quoted(text: str) -> str:
    """As it stands in a sentence or a picture, with spaces and line ends visible."""
    return "`" + text.replace("\n", "\\n") + "`"


def plainly(ids: list[int]) -> str:
    """Tokens as text for a page: without line ends, and nothing in it is markup."""
    text = "".join(c if c.isprintable() else " " for c in tokenizer.decode(ids))
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")


pieces = [piece(token) for token in tokens]
labels = [text.replace("\n", "\\n") for text in pieces]
seen: dict[str, Array] = {}
logits = plain.forward(tokens, config, weights, lambda name, value: seen.update({name: value}))  # (T, vocab_size)


def at(text: str) -> int:
    """The first position whose token is this text."""
    return pieces.index(text)


def map_of(layer: int, head: int) -> Array:
    """The attention weights of a head, (T, T): row i holds the weights of query i on keys 0 to i."""
    return seen[f"layers.{layer}.heads.{head}.weights"]


def lens(x: Array) -> Array:
    """The probabilities of the next token, were x, (dim,) or (T, dim), the output of the last layer."""
    return plain.softmax(plain.linear(plain.rms_norm(x, weights.norm, config.norm_eps), weights.output))


def likely(probabilities: Array, n: int = 1) -> list[tuple[str, float]]:
    """The n most likely tokens as text, and their probabilities."""
    return [(piece(int(i)), float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:n]]


def rms(x: Array) -> Array:
    """Root of the mean square of each row."""
    return np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def parameters(c: ModelConfig) -> dict[str, int]:
    """How many numbers the matrices of a model hold."""
    heads = c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)  # rows of wq, wk, wv, and columns of wo
    return {
        "embedding": c.vocab_size * c.dim,
        "attention": c.n_layers * heads * c.dim,
        "feed-forward": c.n_layers * 3 * c.hidden_dim * c.dim,
        "norms": (2 * c.n_layers + 1) * c.dim,
        "output": c.vocab_size * c.dim,
    }


def chat(question: str) -> list[int]:
    """The token ids of a question in Llama 3's chat format."""
    return llama.encode_chat([{"role": "user", "content": question}])


def merge_steps(chunk: bytes) -> list[list[str]]:
    """The parts of a chunk of text, as plain.merge has them at first, after the first merge, and so on."""
    steps: list[list[str]] = []
    parts, ranks = [bytes([byte]) for byte in chunk], tokenizer.ranks
    while True:
        steps.append([part.decode("utf-8", "replace") for part in parts])
        joined = {parts[i] + parts[i + 1]: i for i in reversed(range(len(parts) - 1))}
        known = [pair for pair in joined if pair in ranks]
        if not known:
            return steps
        i = joined[min(known, key=ranks.__getitem__)]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


# ---- broken models


def changed(layer: int, **matrices: Array) -> Weights:
    """The weights, with some matrices of a layer replaced."""
    layers = list(weights.layers)
    layers[layer] = replace(layers[layer], **matrices)
    return replace(weights, layers=layers)


def shuffled(w: Array, random: np.random.Generator) -> Array:
    """The same numbers in another order."""
    return random.permutation(w.ravel()).reshape(w.shape)


def without(layer: int, head: int) -> Weights:
    """The weights of a model in which this head adds nothing to the residual stream."""
    wo = weights.layers[layer].wo.copy()  # (dim, n_heads * head_dim)
    wo[:, head * config.head_dim : (head + 1) * config.head_dim] = 0
    return changed(layer, wo=wo)


answers: dict[tuple, tuple[Weights, str]] = {}  # what `ask` was asked before


def ask(model: Weights = weights, start: list[int] = prompt, n: int = 14, **parts: Callable) -> str:
    """The n most likely tokens after `start`, one after the other, with functions of plain.py replaced by `parts`."""
    key = (id(model), tuple(start), n, frozenset(parts.items()))
    if key in answers:
        return answers[key][1]
    out = list(start)
    while len(out) < len(start) + n and out[-1] not in llama.checkpoint.stop_ids:
        out.append(int(broken_logits(model, out, **parts)[-1].argmax()))
    text = plainly([token for token in out[len(start) :] if token not in llama.checkpoint.stop_ids])
    answers[key] = model, text  # the model is kept, so that no other one gets its id
    return text


def broken_logits(model: Weights = weights, ids: list[int] = tokens, **parts: Callable) -> Array:
    """The logits of a run, (T, vocab_size), with functions of plain.py replaced by `parts`."""
    with patch.multiple(plain, **parts) if parts else nullcontext():
        return plain.forward(ids, config, model)


def draws(n: int, params: SamplingParams, row: Array) -> list[str]:
    """n tokens drawn from the same logits, with seeds 0 to n - 1."""
    return [piece(plain.sample(row, params, uniform(seed, 0))) for seed in range(n)]


def spoken(params: SamplingParams, seed: int = 1, n: int = 14) -> str:
    """n drawn tokens of an answer, as text."""
    out = list(prompt)
    while len(out) < last + 1 + n and out[-1] not in llama.checkpoint.stop_ids:
        row = plain.forward(out, config, weights)[-1]
        out.append(plain.sample(row, params, uniform(seed, len(out) - len(prompt))))
    return plainly(out[last + 1 :])


def rows_of(steps: int, cached: bool) -> list[int]:
    """How many rows each step of an answer computes: the prompt first, then one token after the other."""
    return [len(prompt) + i if not cached else len(prompt) if i == 0 else 1 for i in range(steps)]
