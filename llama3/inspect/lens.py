"""The logit lens: what the model would answer if it ended at each point of the residual stream.

nostalgebraist, "interpreting GPT: the logit lens" (2020): the final norm and the output matrix, applied to the residual
stream before all layers have added to it. Here it is read twice in each layer, after attention and after feed-forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama3.config import ModelConfig
from llama3.model.weights import Weights
from llama3.plain import linear, rms_norm

ROWS, OUTPUTS = 1024, 16384  # at most about so many rows of so many logits are in memory at once: 64 MB


@dataclass(frozen=True)
class Lens:
    """The likely next tokens at each of S points of the residual stream, for each of T positions."""

    points: list[str]  # S names: "tok_embeddings", "layers.0.attention_residual", "layers.0", ...
    tokens: np.ndarray  # (S, T, n) int64: the n most likely tokens, most likely first
    probabilities: np.ndarray  # (S, T, n) float32: theirs
    of_next: np.ndarray  # (S, T) float32: the probability of the token that follows; NaN at the last position


def read_lens(
    stream: dict[str, np.ndarray], tokens: Sequence[int], config: ModelConfig, weights: Weights, n: int = 5
) -> Lens:
    """stream: the residual stream (T, dim) at each point. Computed in float32, in pieces that fit into memory."""
    T, n, points = len(tokens), min(n, config.vocab_size), list(stream)
    following = np.append(tokens[1:], 0)  # (T,)
    together = max(ROWS // T, 1)  # points that one pass over the output matrix serves
    parts = []
    for at in range(0, len(points), together):
        piece = [stream[point].astype(np.float64) for point in points[at : at + together]]  # (T, dim) each
        rows = np.concatenate([rms_norm(x, weights.norm, config.norm_eps) for x in piece]).astype(np.float32)
        parts.append(_read_rows(rows, weights.output, np.tile(following, len(piece)), n))
    likely, probabilities, of_next = (np.concatenate(column) for column in zip(*parts))
    of_next = of_next.reshape(-1, T)  # (S, T)
    of_next[:, -1] = np.nan  # nothing follows
    return Lens(points, likely.reshape(-1, T, n), probabilities.reshape(-1, T, n), of_next)


def _read_rows(
    x: np.ndarray, output: np.ndarray, following: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (R, dim) -> the n most likely tokens (R, n), their probabilities (R, n), that of `following` (R,)."""
    total = np.full(len(x), -np.inf)  # (R,): the log of the sum of exp(logit) so far
    best = np.full((len(x), n), -np.inf, np.float32)  # (R, n): the highest logits so far
    likely = np.zeros((len(x), n), np.int64)  # (R, n)
    wanted = np.empty(len(x), np.float32)  # (R,)
    for at in range(0, len(output), OUTPUTS):
        logits = linear(x, output[at : at + OUTPUTS])  # (R, outputs)
        highest = logits.max(axis=1)  # (R,)
        total = np.logaddexp(total, highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)))
        here = (at <= following) & (following < at + OUTPUTS)  # (R,)
        wanted[here] = logits[here, following[here] - at]
        ids = np.argpartition(-logits, min(n, logits.shape[1] - 1), axis=1)[:, :n]
        both = np.concatenate([best, np.take_along_axis(logits, ids, axis=1)], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :n]
        best = np.take_along_axis(both, order, axis=1)
        likely = np.take_along_axis(np.concatenate([likely, ids + at], axis=1), order, axis=1)
    probabilities = np.exp(best - total[:, None]).astype(np.float32)
    return likely, probabilities, np.exp(wanted - total).astype(np.float32)


def in_pieces(x: np.ndarray, output: np.ndarray) -> np.ndarray:
    """x (n, dim) @ output.T -> (n, vocab_size), in x's dtype, without a copy of the whole output matrix in it."""
    return np.concatenate([linear(x, output[at : at + OUTPUTS]) for at in range(0, len(output), OUTPUTS)], axis=1)
