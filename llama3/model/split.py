"""How a model is shared out among n ranks, as in Megatron-LM (Shoeybi et al. 2019, section 3).

    wq, wk, wv, w1, w3   by rows: rank r computes the r-th part of the heads and of the feed-forward channels
    wo, w2               by columns: they multiply just these heads and channels, so rank r has a part of every sum
    the rest             whole: the embedding and the norms in every rank

The ranks' products of wo are added up, and so are those of w2. Then every rank has the whole residual stream, and goes
on. These two sums a layer are all that the ranks tell one another. Only rank 0 multiplies by the output matrix.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import DeviceError
from llama3.model.lora import Adapter, LoraPair
from llama3.model.quantised import QuantisedMatrix
from llama3.model.weights import Weights

BY_ROWS = ("wq", "wk", "wv", "w1", "w3")
BY_COLUMNS = ("wo", "w2")
ALL = slice(None)
M = TypeVar("M", np.ndarray, QuantisedMatrix)


def check_split(config: ModelConfig, weights: Weights, device: str, ranks: int, multiple: int = 1) -> None:
    """Raises DeviceError unless each rank gets whole heads, channels in a multiple of `multiple`, and of each quantised
    matrix whole groups, or a part of a single one.
    """
    c = config
    if ranks == 1:
        return

    def lack(n: int) -> str | None:
        for name, step in (("n_heads", n), ("n_kv_heads", n), ("hidden_dim", n * multiple)):
            if getattr(c, name) % step:
                return f"{name} is {getattr(c, name)}; {n} ranks need a multiple of {step}"
        for i, layer in enumerate(weights.layers):
            for name, w in vars(layer).items():
                try:
                    for rank in range(n):
                        part_of(name, w, rank, n)
                except ValueError as error:
                    return f"layers.{i}.{name} has {error}; {n} ranks would cut one in two"
        return None

    if found := lack(ranks):
        fewer = [n for n in range(2, min(ranks, c.n_kv_heads + 1)) if not lack(n)]
        raise DeviceError(f"device {device}: {found}. Use {f'{fewer[-1]} ranks' if fewer else 'a single device'}")


def split_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The shape of one rank's part."""
    c = config
    return replace(c, n_heads=c.n_heads // ranks, n_kv_heads=c.n_kv_heads // ranks, hidden_dim=c.hidden_dim // ranks)


def split_weights(weights: Weights, rank: int, ranks: int) -> Weights:
    """One rank's part of the weights: views, so that nothing is read yet."""
    layers = [
        replace(layer, **{name: part_of(name, w, rank, ranks) for name, w in vars(layer).items()})
        for layer in weights.layers
    ]
    return replace(weights, layers=layers)


def part_of(name: str, w: M, rank: int, ranks: int) -> M:
    """One rank's part of a layer's matrix, or the norm, of this name. Raises ValueError, as `QuantisedMatrix.part`."""
    if name in BY_ROWS:
        return rows(w, rank, ranks)
    return columns(w, rank, ranks) if name in BY_COLUMNS else w


def split_adapter(adapter: Adapter, rank: int, ranks: int) -> Adapter:
    """One rank's part of a LoRA adapter: what it adds to that part of the matrix."""

    def part(name: str, pair: LoraPair) -> LoraPair:
        if name in BY_ROWS:
            return LoraPair(pair.a, rows(pair.b, rank, ranks))
        return LoraPair(np.ascontiguousarray(columns(pair.a, rank, ranks)), pair.b)

    return [{name: part(name, pair) for name, pair in layer.items()} for layer in adapter]


def split_adapters(adapters: Mapping[str, Adapter], rank: int, ranks: int) -> dict[str, Adapter]:
    return {name: split_adapter(adapter, rank, ranks) for name, adapter in adapters.items()}


def rows(w: M, rank: int, ranks: int) -> M:
    """w (n_out, n_in) -> a view (n_out / ranks, n_in)"""
    height = w.shape[0] // ranks
    return _view(w, slice(rank * height, (rank + 1) * height), ALL)


def columns(w: M, rank: int, ranks: int) -> M:
    """w (n_out, n_in) -> a strided view (n_out, n_in / ranks)"""
    width = w.shape[1] // ranks
    return _view(w, ALL, slice(rank * width, (rank + 1) * width))


def _view(w: M, of_rows: slice, of_columns: slice) -> M:
    return w.part(of_rows, of_columns) if isinstance(w, QuantisedMatrix) else w[of_rows, of_columns]
