"""The known faults: what implementations of Llama 3 get wrong. docs/faults.md describes each.

`fixed` lists those without a number. `numbers` lists those with one, and how to search it. `from_row` lists those that
begin at some position. hidden_bos.py, other_output.py and cast_order.py have the rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy import ndarray as Array

from llama3 import plain
from llama3.config import ModelConfig, RopeScaling
from llama3.model.rope import rope_angles_float32
from llama3.model.weights import LayerWeights, Weights
from llama3.parity.planted import Fault

ALL_ORDERS = 4  # up to so many key heads, every order of them is tried
MASKED = -1e30  # finite, so that a row that sees nothing takes the mean of all values, as with torch.finfo(...).min


@dataclass(frozen=True)
class Number:
    """A fault with a number in it. The search begins at the nearest of `grid` and `start`, the right number.

    Its steps are in log(number) if `log`.
    """

    make: Callable[[float], Fault]
    grid: Array
    start: float | None = None
    log: bool = True


def float32_angles(c: ModelConfig) -> Fault:
    what = "RoPE's angles are float32, as in transformers (right for most purposes: see --rope-angles)"
    functions = {"rotate": lambda x, angle: plain.rotate(x, rope_angles_float32(c, len(x)))}
    return Fault("rope_angles", what, functions, in_layers=False)


def fixed(config: ModelConfig, tied: bool) -> Iterator[Fault]:
    """Every fault without a number that this model can have."""
    yield from _rope(config)
    yield from _masks()
    yield Fault("missing_scale", "scores are not divided by sqrt(head_dim)", {"attention_scores": _scores(lambda d: 1)})
    yield Fault(
        "missing_scale", "scores are divided by sqrt(head_dim) twice", {"attention_scores": _scores(lambda d: 1 / d)}
    )
    yield from _kv_head_orders(config)
    yield Fault("gate_up_swapped", "w1 and w3 are swapped: silu is applied to up, not to gate", layer=_swap_gate_up)
    yield Fault("residual_missing", "the residual is left out after attention", see=_no_residual(True, False))
    yield Fault("residual_missing", "the residual is left out after feed-forward", see=_no_residual(False, True))
    yield Fault("residual_missing", "both residuals are left out", see=_no_residual(True, True))
    yield Fault("norm_eps", "norm_eps is added after the square root, not inside", {"rms_norm": _eps_outside})
    yield Fault("norm_eps", "norm_eps is left out", {"rms_norm": lambda x, w, eps: plain.rms_norm(x, w, 0.0)})
    if not tied:
        what = "the output matrix is the embedding table, but the checkpoint has a matrix of its own"
        yield Fault("tied_output", what, output=_embeddings, in_layers=False)


def numbers(config: ModelConfig) -> Iterator[Number]:
    """Every fault with a number that this model can have."""
    c = config

    def theta(value: float) -> Fault:
        what = f"theta is {value:,.7g} instead of {c.rope_theta:,.7g}"
        return Fault("rope_theta", what, {"rotate": _turned(replace(c, rope_theta=value))})

    def eps(value: float) -> Fault:
        what = f"norm_eps is {value:.6g} instead of {c.norm_eps:g}"
        return Fault("norm_eps", what, {"rms_norm": lambda x, w, _: plain.rms_norm(x, w, value)})

    def scale(value: float) -> Fault:
        what = f"scores are multiplied by {value:.6g} instead of 1/sqrt(head_dim) = {c.head_dim**-0.5:.6g}"
        return Fault("missing_scale", what, {"attention_scores": _scores(lambda d: value)})

    def leak(value: float) -> Fault:
        def scores(q: Array, k: Array) -> Array:
            return q @ k.T / np.sqrt(q.shape[1]) + value * _future(q, k)

        return Fault("mask", f"{value:.4g} is added to the scores of later positions", {"attention_scores": scores})

    def factor(value: float) -> Fault:
        scaling = replace(c.rope_scaling or RopeScaling(), factor=max(1.0, value))
        now = f"{c.rope_scaling.factor:g}" if c.rope_scaling else "none"
        what = f"the factor of the scaling is {value:.6g} instead of {now}"
        return Fault("rope_scaling", what, {"rotate": _turned(replace(c, rope_scaling=scaling))})

    def linear(value: float) -> Fault:
        def rotate(x: Array, angle: Array) -> Array:
            return plain.rotate(x, plain.rope_angles(np.arange(len(x)), replace(c, rope_scaling=None)) / value)

        return Fault("rope_scaling", f"all angles are divided by {value:.6g} (linear scaling)", {"rotate": rotate})

    yield Number(theta, np.geomspace(1e2, 1e9, 43), c.rope_theta)
    yield Number(eps, np.geomspace(1e-12, 1e-1, 34), c.norm_eps)
    yield Number(factor, np.geomspace(1.0001, 128, 22), c.rope_scaling.factor if c.rope_scaling else 1.0)
    yield Number(linear, np.geomspace(1.05, 64, 22), 1.0)
    yield Number(scale, np.geomspace(1e-3, 8, 28), c.head_dim**-0.5)
    yield Number(leak, np.linspace(-16, 4, 21), log=False)


def from_row(config: ModelConfig, row: int) -> Iterator[Fault]:
    """The faults that show first at this position."""
    for shift in (1, -1, 2, -2):
        positions = _shifted(row, shift)

        def rotate(x: Array, angle: Array, positions: Callable[[int], Array] = positions) -> Array:
            return plain.rotate(x, plain.rope_angles(positions(len(x)), config))

        what = f"positions are off by {shift:+d} from position {row} on"
        yield Fault("cache_position", what, {"rotate": rotate})
        for part, name in (("q", "queries"), ("k", "keys")):
            yield Fault("cache_position", f"{what}, for {name} alone", see=_rotated_part(part, rotate))

    def window(q: Array, k: Array) -> Array:
        return np.where(_distance(q, k) >= row, MASKED, plain.attention_scores(q, k))

    yield Fault("mask", f"a position sees only the last {row} positions, itself included", {"attention_scores": window})


def everywhere_shifted(config: ModelConfig) -> Iterator[Fault]:
    """Queries and keys that disagree about their positions from the first position on."""
    for shift in (1, -1):

        def rotate(x: Array, angle: Array, shift: int = shift) -> Array:
            return plain.rotate(x, plain.rope_angles(np.arange(len(x)) + shift, config))

        what = f"positions of the queries are off by {shift:+d}, those of the keys are right"
        yield Fault("cache_position", what, see=_rotated_part("q", rotate))


def _rope(c: ModelConfig) -> Iterator[Fault]:
    def add(what: str, rotate: Callable[[Array, Array], Array]) -> Fault:
        return Fault("rope_layout", what, {"rotate": rotate})

    yield add(
        "pairs of neighbours (2i, 2i + 1) are rotated, but the weights are in halves (i, i + head_dim / 2)", _pairs
    )
    for what, order in (("are in Meta's order (pairs), but halves are rotated", _to_pairs),
                        ("were reordered from pairs to halves twice", _to_halves)):  # fmt: skip
        for parts in (("q", "k"), ("q",), ("k",)):
            rows = " and ".join(f"w{part}" for part in parts)
            yield Fault("rope_layout", f"the rows of {rows} {what}", see=_reordered(parts, order))
    yield add("the angles are laid out in pairs, but halves are rotated", _halves_with_angles_of_pairs)
    yield add("the angles are laid out in halves, but pairs are rotated", _pairs_with_angles_of_halves)
    yield add("queries and keys are rotated the other way round", lambda x, angle: plain.rotate(x, -angle))
    yield add("queries and keys are not rotated", lambda x, angle: x)
    if c.rope_scaling:
        yield Fault("rope_scaling", "RoPE's scaling is missing", {"rotate": _turned(replace(c, rope_scaling=None))})
    yield from everywhere_shifted(c)


def _masks() -> Iterator[Fault]:
    def add(what: str, scores: Callable[[Array, Array, Array], Array]) -> Fault:
        def attention_scores(q: Array, k: Array) -> Array:
            return scores(q @ k.T / np.sqrt(q.shape[1]), _future(q, k), _distance(q, k))

        return Fault("mask", what, {"attention_scores": attention_scores})

    yield add("there is no mask: every position sees all later ones", lambda s, future, distance: s)
    yield add("the mask of 0 and 1 is added to the scores, 1 for what is seen", lambda s, future, distance: s + ~future)
    yield add("the mask of 0 and 1 is added to the scores, 1 for what is later", lambda s, future, distance: s + future)
    yield add("the scores are multiplied by the mask of 0 and 1", lambda s, future, distance: s * ~future)
    yield add(
        "the mask is off by one: a position sees the next one",
        lambda s, _, distance: np.where(distance < -1, MASKED, s),
    )
    yield add(
        "the mask is off by one: a position does not see itself",
        lambda s, _, distance: np.where(distance < 1, MASKED, s),
    )
    yield add(
        "the mask is transposed: a position sees itself and later ones",
        lambda s, _, distance: np.where(distance > 0, MASKED, s),
    )


def _kv_head_orders(c: ModelConfig) -> Iterator[Fault]:
    n, group = c.n_kv_heads, c.n_heads // c.n_kv_heads
    right = [j // group for j in range(c.n_heads)]
    if n == 1:
        return
    tried = {tuple(right)}
    tile = [j % n for j in range(c.n_heads)]
    orders = [("are repeated as 0, 1, ..., 0, 1, ... instead of 0, 0, ..., 1, 1, ...", tile)]
    some = (
        permutations(range(n))
        if n <= ALL_ORDERS
        else [tuple(reversed(range(n))), *(tuple(np.roll(range(n), s)) for s in range(1, n))]
    )
    orders += [(f"are in the order {', '.join(map(str, order))}", [int(order[j]) for j in right]) for order in some]
    for what, order in orders:
        if tuple(order) not in tried:
            tried.add(tuple(order))
            for name, k, v in (("keys and values", order, order), ("keys", order, right), ("values", right, order)):
                yield Fault("kv_head_order", f"the heads of the {name} {what}", see=_heads_from(k, v))


def _heads_from(k_of: list[int], v_of: list[int]) -> Callable[[str, Array, object], Array | None]:
    """Query head j uses key head k_of[j] and value head v_of[j]."""

    def see(part: str, value: Array, seen: dict[str, Array]) -> Array | None:
        if part.endswith(".scores"):
            j = int(part.split(".")[1])
            return plain.attention_scores(seen["q_rope"][:, j], seen["k_rope"][:, k_of[j]])
        if part.endswith(".output"):
            return seen["weights"] @ seen["v"][:, v_of[int(part.split(".")[1])]]
        return None

    return see  # type: ignore[return-value]


def _no_residual(attention: bool, feed_forward: bool) -> Callable[[str, Array, object], Array | None]:
    def see(part: str, value: Array, seen: dict[str, Array]) -> Array | None:
        if part == "attention_residual" and attention:
            return seen["attention"]
        return seen["feed_forward"] if part == "" and feed_forward else None

    return see  # type: ignore[return-value]


def _reordered(parts: tuple[str, ...], order: Callable[[Array], Array]) -> Callable[[str, Array, object], Array | None]:
    return lambda part, value, seen: order(value) if part in parts else None


def _rotated_part(of: str, rotate: Callable[..., Array]) -> Callable[[str, Array, object], Array | None]:
    def see(part: str, value: Array, seen: dict[str, Array]) -> Array | None:
        return rotate(seen[of], None) if part == f"{of}_rope" else None

    return see  # type: ignore[return-value]


def _shifted(row: int, shift: int) -> Callable[[int], Array]:
    return lambda length: np.arange(length) + shift * (np.arange(length) >= row)


def _turned(config: ModelConfig) -> Callable[[Array, Array], Array]:
    return lambda x, angle: plain.rotate(x, plain.rope_angles(np.arange(len(x)), config))


def _to_pairs(x: Array) -> Array:
    """Channels i and i + head_dim / 2 become 2i and 2i + 1."""
    return np.stack(np.split(x, 2, axis=-1), axis=-1).reshape(x.shape)


def _to_halves(x: Array) -> Array:
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


def _pairs(x: Array, angle: Array) -> Array:
    return _to_pairs(plain.rotate(_to_halves(x), angle))


def _halves_with_angles_of_pairs(x: Array, angle: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)  # (T, heads, head_dim / 2)
    wide = np.repeat(angle, 2, axis=-1)[:, None]  # (T, 1, head_dim)
    return x * np.cos(wide) + np.concatenate([-b, a], axis=-1) * np.sin(wide)


def _pairs_with_angles_of_halves(x: Array, angle: Array) -> Array:
    a, b = x[..., 0::2], x[..., 1::2]  # (T, heads, head_dim / 2)
    wide = np.concatenate([angle, angle], axis=-1)[:, None]  # (T, 1, head_dim)
    return x * np.cos(wide) + np.stack([-b, a], axis=-1).reshape(x.shape) * np.sin(wide)


def _scores(scale: Callable[[int], float]) -> Callable[[Array, Array], Array]:
    return lambda q, k: np.where(_future(q, k), -np.inf, q @ k.T * scale(q.shape[1]))


def _distance(q: Array, k: Array) -> Array:
    """How far before the query each key stands: (len(q), len(k)), negative for later ones."""
    return np.arange(len(k) - len(q), len(k))[:, None] - np.arange(len(k))


def _future(q: Array, k: Array) -> Array:
    return _distance(q, k) < 0


def _swap_gate_up(layer: LayerWeights) -> LayerWeights:
    return replace(layer, w1=layer.w3, w3=layer.w1)


def _embeddings(weights: Weights) -> Array:
    return weights.tok_embeddings


def _eps_outside(x: Array, weight: Array, eps: float) -> Array:
    return x / (np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) + eps) * weight
