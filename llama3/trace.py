"""Collects the intermediate values of a forward pass by name, for `Llama.trace`.

A model computes attention in blocks and never holds a head's (T, T) scores. They are computed here from the model's own
rotated queries and keys, for the heads that are asked for.
"""

from collections.abc import Iterable

import numpy as np

from llama3.activation_names import choose_names
from llama3.config import ModelConfig
from llama3.errors import RequestError
from llama3.model.attention import softmax


class Recorder:
    """Called with names and values by `forward` of a model, as its `trace`. Keeps what `names` asks for."""

    def __init__(self, names: str | Iterable[str], config: ModelConfig):
        """Raises RequestError for a name that the model does not have (see `choose_names`)."""
        self.config = config
        self.names = choose_names(names, config)
        self.needs_rows = bool({"norm", "logits"} & set(self.names))  # these two are computed for asked rows only
        needed = {source for name in self.names for source in _sources(name)}
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in needed}  # the values of each chunk of tokens

    def __call__(self, name: str, value: np.ndarray) -> None:
        if name in self._parts:
            self._parts[name].append(np.array(value, np.float32))  # a copy: a view would keep a larger array alive

    def keep_logits(self, start: int, logits: np.ndarray) -> None:
        """Keep the logits of a chunk, if they are asked for; `start` is its first position."""
        self("logits", logits)

    def values(self) -> dict[str, np.ndarray]:
        """Name -> value, float32, in the order of computation. Raises RequestError for what the model did not give."""
        if missing := [name for name, parts in self._parts.items() if not parts]:
            raise RequestError(f"{min(missing)} cannot be traced on this device; expected one that its trace gives")
        whole = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        found = {}
        for name in self.names:
            if name in whole:
                found[name] = whole[name]
            else:
                scores = attention_scores(*self._head(name, whole))
                found[name] = scores if name.endswith("scores") else softmax(scores)
        return found

    def _head(self, name: str, values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The rotated queries and keys, (T, head_dim) each, of the head that a name such as layers.0.heads.1.scores
        means.
        """
        q, k = (values[source] for source in _sources(name))
        head = int(name.split(".")[3])
        return q[:, head], k[:, head // (self.config.n_heads // self.config.n_kv_heads)]


def attention_scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """q, k (T, head_dim) float32 -> (T, T) float32: q k^T / sqrt(head_dim), -inf for the keys after a query."""
    scores = q @ k.T / np.sqrt(np.float32(q.shape[1]))  # (T, T)
    scores[np.triu(np.ones(scores.shape, bool), 1)] = -np.inf
    return scores


def _sources(name: str) -> tuple[str, ...]:
    """The values of a model's trace from which a value is made: itself, or rotated queries and keys for scores."""
    if name.endswith((".scores", ".weights")):
        layer = ".".join(name.split(".")[:2])
        return f"{layer}.q_rope", f"{layer}.k_rope"
    return (name,)
