"""The names and shapes of a model's intermediate values, by Meta's parameter names, in the order of computation.

`plain.forward`, `Llama.trace` and reference files (parity/) use these names. T is the number of tokens:
  tok_embeddings                        (T, dim): the residual stream begins here
  layers.{i}.attention_norm             (T, dim)
  layers.{i}.q, .k, .v                  (T, n_heads or n_kv_heads, head_dim), before RoPE
  layers.{i}.q_rope, .k_rope            the same after RoPE
  layers.{i}.heads.{j}.scores           (T, T): q k^T / sqrt(head_dim); -inf for a key after its query
  layers.{i}.heads.{j}.weights          (T, T): softmax of each row of the scores
  layers.{i}.heads.{j}.output           (T, head_dim): weights times v
  layers.{i}.attention                  (T, dim): what attention adds to the residual stream, after wo
  layers.{i}.attention_residual         (T, dim): the residual stream after attention
  layers.{i}.ffn_norm                   (T, dim)
  layers.{i}.gate, .up                  (T, hidden_dim): the products with w1 and w3
  layers.{i}.feed_forward               (T, dim): what the feed-forward network adds
  layers.{i}                            (T, dim): the residual stream after the layer
  norm                                  (T, dim)
  logits                                (T, vocab_size)
"""

import re
from collections.abc import Iterable

from llama3.config import ModelConfig
from llama3.errors import RequestError


def activation_names(config: ModelConfig) -> list[str]:
    """Every name, in the order of computation. Llama 3 8B has 3,491."""
    names = ["tok_embeddings"]
    heads = [f"heads.{j}.{part}" for j in range(config.n_heads) for part in ("scores", "weights", "output")]
    before = ["attention_norm", "q", "k", "v", "q_rope", "k_rope", *heads, "attention", "attention_residual"]
    for i in range(config.n_layers):
        names += [f"layers.{i}.{part}" for part in (*before, "ffn_norm", "gate", "up", "feed_forward")]
        names.append(f"layers.{i}")
    return [*names, "norm", "logits"]


def activation_shape(name: str, config: ModelConfig, T: int) -> tuple[int, ...]:
    """The shape of a value for T tokens. `name` is one of `activation_names(config)`."""
    c, part = config, name.rpartition(".")[2]
    if part in ("q", "q_rope"):
        return (T, c.n_heads, c.head_dim)
    if part in ("k", "v", "k_rope"):
        return (T, c.n_kv_heads, c.head_dim)
    widths = {"scores": T, "weights": T, "output": c.head_dim, "gate": c.hidden_dim, "up": c.hidden_dim}
    return (T, {**widths, "logits": c.vocab_size}.get(part, c.dim))


def choose_names(patterns: str | Iterable[str], config: ModelConfig) -> list[str]:
    """The names that one or more patterns select, in the order of computation.

    In a pattern, * stands for one part of a name between dots, such as a number, and ** for anything. "layers.*" is the
    residual stream after each layer, "layers.0.heads.*.weights" are the weights of all heads of layer 0, "**" is all.
    Raises RequestError for a pattern that selects nothing.
    """
    known, chosen = activation_names(config), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise RequestError(f"an activation's name is {type(pattern).__name__}; expected text such as 'layers.0.q'")
        parts = [{"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", pattern)]
        expression = re.compile("".join(parts))
        found = [name for name in known if expression.fullmatch(name)]
        if not found:
            raise RequestError(_nothing(pattern, config))
        chosen.update(found)
    return [name for name in known if name in chosen]


def missing_part(name: str, c: ModelConfig) -> str | None:
    """What is said of a name or pattern with a layer or a head that the model lacks; None for any other."""
    if (layer := re.match(r"layers\.(\d+)", name)) and int(layer[1]) >= c.n_layers:
        return f"there is no layer {layer[1]}; the model has layers 0 to {c.n_layers - 1}"
    if (head := re.match(r"layers\.[^.]+\.heads\.(\d+)", name)) and int(head[1]) >= c.n_heads:
        return f"there is no head {head[1]}; a layer has heads 0 to {c.n_heads - 1}"
    return None


def _nothing(pattern: str, c: ModelConfig) -> str:
    """Why a pattern selects nothing, in one line."""
    if lack := missing_part(pattern, c):
        return f"{pattern!r}: {lack}"
    parts = "X is attention_norm, q, k, v, q_rope, k_rope, heads.0.scores, heads.0.weights, heads.0.output, attention, "
    parts += "attention_residual, ffn_norm, gate, up, feed_forward"
    return (
        f"no activation is called {pattern!r}; expected tok_embeddings, layers.0, norm, logits; or layers.0.X: {parts}"
    )
