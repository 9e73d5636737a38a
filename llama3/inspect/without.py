"""Switch off heads and feed-forwards, and see which answer follows.

A head reaches the residual stream through its columns of wo alone. With zeros there, it adds nothing, and all else is
computed as before. A feed-forward reaches it through w2. So a part is switched off in the weights, on any device and
beside any other requests.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import RequestError
from llama3.model.weights import LayerWeights, Weights

FEED_FORWARD = "ffn"
Part = tuple[int, int | str]  # (layer, head) or (layer, "ffn")


@dataclass(frozen=True)
class Ablation:
    """The answer with some parts of the model switched off."""

    parts: list[Part]
    tokens: list[int]  # of the answer, without the stop token
    text: str
    same: int  # how many tokens at the beginning are those of the whole model's answer
    loss: float  # nats a token: how much less likely the whole model's answer has become


def parse_part(text: str, config: ModelConfig, feed_forward: bool = True) -> Part:
    """ "0.1" -> layer 0, head 1; "3.ffn" -> the feed-forward of layer 3. Raises RequestError."""
    layer, dot, head = text.partition(".")
    form = "LAYER.HEAD, such as 0.1" + (", or LAYER.ffn" if feed_forward else "")
    if not dot or not layer.isdecimal() or not (head.isdecimal() or (feed_forward and head == FEED_FORWARD)):
        raise RequestError(f"{text!r} is not a part of the model; expected {form}")
    return check_part((int(layer), head if head == FEED_FORWARD else int(head)), config)


def check_part(part: Part, config: ModelConfig) -> Part:
    """The same part. Raises RequestError if the model has no such layer or head."""
    layer, head = part
    if not isinstance(layer, int | np.integer) or not 0 <= layer < config.n_layers:
        raise RequestError(f"there is no layer {layer}; this model has layers 0 to {config.n_layers - 1}")
    if head != FEED_FORWARD and (not isinstance(head, int | np.integer) or not 0 <= head < config.n_heads):
        raise RequestError(
            f"there is no head {layer}.{head}; this model has heads 0 to {config.n_heads - 1} in a layer"
        )
    return part


def name_of(part: Part) -> str:
    return f"{part[0]}.{part[1]}"


def all_parts(config: ModelConfig) -> list[Part]:
    """Each head, then the feed-forward, of each layer."""
    return [(layer, part) for layer in range(config.n_layers) for part in (*range(config.n_heads), FEED_FORWARD)]


def switch_off(weights: Weights, parts: Iterable[Part], config: ModelConfig) -> Weights:
    """Weights in which these parts add nothing. Only the matrices that change are copied."""
    layers = list(weights.layers)
    for part in parts:
        layer, head = check_part(part, config)
        layers[layer] = _switch_off(layers[layer], head, config.head_dim)
    return replace(weights, layers=layers)


def _switch_off(layer: LayerWeights, head: int | str, head_dim: int) -> LayerWeights:
    if head == FEED_FORWARD:
        return replace(layer, w2=np.zeros(layer.w2.shape, layer.w2.dtype))
    wo = np.array(layer.wo)  # (dim, n_heads * head_dim)
    wo[:, int(head) * head_dim : (int(head) + 1) * head_dim] = 0
    return replace(layer, wo=wo)


def same_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are equal before the first difference."""
    pairs = [x == y for x, y in zip(a, b)]
    return pairs.index(False) if False in pairs else len(pairs)
