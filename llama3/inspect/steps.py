"""How one token was chosen: its rivals, and what each stage of the sampler left of them.

The stages are the sampler's own functions, called one after another (`sampler.py` names their order).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama3.philox import uniform
from llama3.sampler import penalised
from llama3.sampler_fast import min_p, top_k, top_p
from llama3.sampling_params import SamplingParams

STAGES = ("model", "penalties", "temperature", "top_k", "top_p", "min_p")
RIVALS = 8  # tokens that a step lists, besides the chosen one


@dataclass(frozen=True)
class Step:
    """One generated token."""

    position: int  # of the token in the text; the logits are those of the position before it
    token: int
    probability: float  # that the model gave it, before the sampler
    entropy: float  # of the model's distribution, in nats
    u: float  # the random number of the draw, 0 <= u < 1; unused at temperature 0
    rivals: list[int]  # the most likely tokens of the model, and the chosen one
    stages: dict[str, list[float]]  # stage -> the probability of each rival after it; 0: it is no longer a candidate
    left: dict[str, int]  # stage -> how many tokens are candidates after it


def choose_steps(
    logits: np.ndarray, tokens: Sequence[int], prompt: Sequence[int], params: SamplingParams
) -> list[Step]:
    """logits (n, vocab_size) float32, one row for each of the n generated tokens. params needs a seed."""
    assert len(logits) == len(tokens) and params.seed is not None, (len(logits), len(tokens), params.seed)
    seen, counts = np.zeros(logits.shape[1], bool), np.zeros(logits.shape[1], np.int32)
    seen[list(prompt)] = True
    steps = []
    for i, (row, token) in enumerate(zip(logits, tokens)):
        u = uniform(params.seed, i)
        steps.append(_step(len(prompt) + i, int(token), u, distributions(row, params, seen, counts)))
        seen[token] = True
        counts[token] += 1
    return steps


def distributions(
    logits: np.ndarray, params: SamplingParams, seen: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """logits (vocab_size,) float32 -> stage -> the probabilities (vocab_size,) float64 after that stage.

    seen, counts: as for `sampler.penalised`. A stage that is switched off changes nothing.
    """
    after = {"model": probabilities(logits, 1.0)}
    logits = penalised(logits, params, seen, counts)
    after["penalties"] = probabilities(logits, 1.0)
    after["temperature"] = now = probabilities(logits, params.temperature)
    if params.temperature == 0:  # one token is left: there is nothing to filter
        return after | dict.fromkeys(("top_k", "top_p", "min_p"), now)
    left = np.arange(len(logits))
    for name, keep in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)):
        kept = keep(logits[left], params)
        if kept is not None:
            left = left[kept]
            now = np.zeros(len(logits))
            now[left] = probabilities(logits[left], params.temperature)
        after[name] = now
    return after


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature) in float64; at temperature 0 all of it is on the first of the highest logits."""
    if temperature == 0:
        certain = np.zeros(len(logits))
        certain[logits.argmax()] = 1
        return certain
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def _step(position: int, token: int, u: float, after: dict[str, np.ndarray]) -> Step:
    model = after["model"]
    likely = np.argsort(-model, kind="stable")[:RIVALS].tolist()
    rivals = likely if token in likely else [*likely, token]
    some = model[model > 0]
    entropy = max(0.0, float(-(some * np.log(some)).sum()))
    stages = {name: after[name][rivals].tolist() for name in STAGES}
    left = {name: int(np.count_nonzero(after[name])) for name in STAGES}
    return Step(position, token, float(model[token]), entropy, u, rivals, stages, left)
