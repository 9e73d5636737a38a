"""From logits to a token: penalties, mask, temperature, top_k, top_p, min_p, and one draw; in this order.

A token's weight is exp((logit - highest logit) / temperature), in float64; its probability is its weight over the sum
of the weights in play. Every filter keeps the head of one list: the tokens by logit, highest first, and among equals by
id, lowest first. The draw adds up weights in the order of the ids.
"""

import math
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llama3.errors import Llama3Error, RequestError
from llama3.philox import uniform

HIGHEST_DRAWN_SEED = 9_999_999_999  # the highest that Cloudflare Workers AI takes: a drawn seed serves there, too
PART = 8192  # tokens whose weights are computed at once


class LogitsError(Llama3Error):
    """No token can be chosen from these logits."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Raises RequestError that names the parameter, what was found and the range."""

    temperature: float = 0.6  # 0: always the most likely token
    top_p: float | None = None  # the fewest tokens whose probabilities sum to at least top_p; None or 1: all
    top_k: int | None = None  # the top_k most likely tokens; None: all
    min_p: float | None = None  # tokens at least min_p times as likely as the most likely one; None or 0: all
    seed: int | None = None  # None: one is drawn
    repetition_penalty: float = 1.0  # on tokens of prompt and output; 0 means 1: off
    frequency_penalty: float = 0.0  # for each time a token is in the output
    presence_penalty: float = 0.0  # once for a token that is in the output
    logprobs: int | None = None  # n: report the chosen token's log-probability and the n most likely tokens

    def __post_init__(self) -> None:
        self._check("temperature", float, 0)
        self._check("top_p", float, 0, 1)
        self._check("top_k", int, 1)
        self._check("min_p", float, 0, 1)
        self._check("seed", int, 0, 2**64 - 1)
        self._check("repetition_penalty", float, 0, 100)
        self._check("frequency_penalty", float, -100, 100)
        self._check("presence_penalty", float, -100, 100)
        self._check("logprobs", int, 0)

    def with_seed(self) -> "SamplingParams":
        """The same, with a seed drawn unless there is one."""
        return self if self.seed is not None else replace(self, seed=1 + secrets.randbelow(HIGHEST_DRAWN_SEED))

    def _check(self, name: str, kind: type[int] | type[float], low: int, high: int | None = None) -> None:
        """Refuse a wrong type, NaN, infinity and what is out of range; turn NumPy's numbers into Python's."""
        value = getattr(self, name)
        value = value.item() if isinstance(value, np.generic) else value
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        most = sys.float_info.max if high is None else high
        if not isinstance(value, (int, kind)) or isinstance(value, bool) or not low <= value <= most:
            limits = f"not below {low}" if high is None else f"from {low} to {high}"
            expected = f"a {'whole' if kind is int else 'finite'} number {limits}"
            raise RequestError(f"{name} is {value!r}: expected {expected}")
        object.__setattr__(self, name, kind(value))


@dataclass(frozen=True)
class Sample:
    """A chosen token; with logprobs asked for, its log-probability and the most likely tokens, highest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampling:
    """The sampler of one sequence: its parameters, its seed, and what of its tokens the penalties must know."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        mask: Callable[[], np.ndarray | None] | None = None,
    ):
        """mask, asked before each draw, returns the allowed tokens, (vocab_size,) bool, or None: all are allowed."""
        self.params = params.with_seed()
        self.seed: int = self.params.seed  # type: ignore[assignment]
        self.index = 0  # how many output tokens there are so far
        self.mask = mask
        self.seen = np.zeros(vocab_size, bool)  # is the token in the prompt or the output?
        self.counts = np.zeros(vocab_size, np.int32)  # how often is it in the output?
        for token in prompt:
            self.seen[self._checked(token)] = True

    def accept(self, token: int) -> None:
        """Append an output token, drawn or forced."""
        self.seen[self._checked(token)] = True
        self.counts[token] += 1
        self.index += 1

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self.seen):
            raise RequestError(f"token id {token} is not in the vocabulary: expected 0 to {len(self.seen) - 1}")
        return token

    def sample(self, logits: np.ndarray) -> Sample:
        """Choose the next token from its raw logits, (vocab_size,) float32. Changes nothing: `accept` does.

        Raises LogitsError if a logit is NaN or +inf, or no token is left. A token whose logit is -inf is never chosen.
        """
        assert logits.shape == self.seen.shape and logits.dtype == np.float32, (logits.shape, logits.dtype)
        if not logits.max() < np.inf:  # NaN if one of them is
            token = int(np.flatnonzero(~(logits < np.inf))[0])
            raise bad_logit(token, logits[token])
        with np.errstate(over="ignore"):  # a tiny temperature takes all but the highest logits to -inf
            token = self._choose(penalised(logits, self.params, self.seen, self.counts))
        if self.params.logprobs is None:
            return Sample(token)
        return Sample(token, *logprobs(logits, token, self.params.logprobs))

    def _choose(self, logits: np.ndarray) -> int:
        u = uniform(self.seed, self.index)
        allowed = self.mask() if self.mask is not None else None
        if allowed is None:
            return choose(logits, self.params, u)
        assert allowed.shape == logits.shape and allowed.dtype == bool, (allowed.shape, allowed.dtype)
        ids = np.flatnonzero(allowed)
        return int(ids[choose(logits[ids], self.params, u)])


def bad_logit(token: int, value: np.floating) -> LogitsError:
    return LogitsError(
        f"the logit of token {token} is {value}: expected finite numbers. "
        "Look for NaN or huge values in the checkpoint's weights, and whether config.json belongs to them"
    )


def no_token_left() -> LogitsError:
    return LogitsError("no token is left to choose from: the mask forbids all, or every logit is -inf")


# From here on, a place is a token's index among the logits in play: what the mask and the filters before have left.


def penalised(logits: np.ndarray, params: SamplingParams, seen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The logits less the penalties, computed in float64 and rounded to float32 once.

    seen, (vocab_size,) bool: is the token in the prompt or the output? counts, (vocab_size,): how often in the output?
    """
    repetition = params.repetition_penalty or 1.0
    if repetition == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0:
        return logits
    ids = np.flatnonzero(seen)
    values = logits[ids].astype(np.float64)
    values = np.where(values > 0, values / repetition, values * repetition)  # either way less likely
    values -= params.frequency_penalty * counts[ids] + params.presence_penalty * (counts[ids] > 0)
    logits = logits.copy()
    logits[ids] = np.minimum(values, np.finfo(np.float32).max)  # a tiny repetition penalty must not make infinity
    return logits


def choose(logits: np.ndarray, params: SamplingParams, u: float) -> int:
    """The place of the next token: greedy at temperature 0, else drawn from what the filters leave."""
    if len(logits) == 0 or logits.max() == -np.inf:
        raise no_token_left()
    if params.temperature == 0:
        return int(logits.argmax())  # the first among equals
    places = survivors(logits, params)
    if places is None:
        return draw(logits, params.temperature, u)
    return int(places[draw(logits[places], params.temperature, u)])


def survivors(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The places that top_k, top_p and min_p leave, ascending; None: all. Each sees only what those before it left."""
    left = None
    for keep in (top_k, top_p, min_p):
        places = keep(logits, params)
        if places is not None:
            logits, left = logits[places], places if left is None else left[places]
    return left


def top_k(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The places of the top_k highest logits, ascending; None: all."""
    if params.top_k is None or params.top_k >= len(logits):
        return None
    return head(logits, params.top_k, np.partition(logits, -params.top_k)[-params.top_k])


def top_p(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The places of the shortest head that holds top_p of the weight: the token that crosses top_p is kept.

    Sorting 128,256 tokens would take longer than all the rest. A histogram of the weights over the scaled logits,
    highest first, tells in which bin the sum crosses top_p; only that bin is sorted.
    """
    if params.top_p is None or params.top_p == 1:
        return None
    highest, temperature = logits.max(), params.temperature
    bins = np.empty(len(logits), np.int16)
    weights = np.zeros(1025)
    for part in parts(logits):
        x = np.maximum(scaled(logits[part], highest, temperature), -64)  # lighter tokens do not count in float64
        bins[part] = x * -16
        weights += np.bincount(bins[part], np.exp(x), len(weights))
    sums = weights.cumsum()
    target = params.top_p * sums[-1]
    crossed = int(sums.searchsorted(target))
    inside = np.sort(logits[bins == crossed])[::-1]
    inside_sums = (sums[crossed - 1] if crossed else 0) + np.exp(scaled(inside, highest, temperature)).cumsum()
    last = min(int(inside_sums.searchsorted(target)), len(inside) - 1)  # rounding may leave target above them all
    return head(logits, int(np.count_nonzero(bins < crossed)) + last + 1, inside[last])


def min_p(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The places of the logits whose weight is at least min_p; the highest has weight 1."""
    if not params.min_p:
        return None
    return np.flatnonzero(logits >= np.float64(logits.max()) + params.temperature * math.log(params.min_p))


def head(logits: np.ndarray, n: int, lowest: np.floating) -> np.ndarray:
    """The places of the n highest logits, of which `lowest` is the last; among equals the first ones."""
    keep = logits >= lowest
    surplus = np.count_nonzero(keep) - n
    if surplus:
        keep[np.flatnonzero(logits == lowest)[-surplus:]] = False
    return np.flatnonzero(keep)


def draw(logits: np.ndarray, temperature: float, u: float) -> int:
    """The first place at which the running sum of the weights exceeds u times their total, 0 <= u < 1.

    In float64; a weight of zero does not raise the sum and so is never drawn. NumPy's exp is vectorised in float32 but
    not, everywhere, in float64, so float32 weights go first. Rounding before exp and in it (3 units in the last place)
    leaves a relative error of |scaled| * 2**-24 + 3 * 2**-23. The mean of |scaled| over the distribution is at most its
    entropy, and that at most log(n). So no running sum is wrong by more than `doubt` of the total, and where u is that
    near to the border between two tokens, float64 decides: the token is always float64's.
    """
    highest = logits.max()
    doubt_in_float32 = math.log(len(logits)) * 2.0**-24 + 3 * 2.0**-23

    def weights(part: slice, dtype: type) -> np.ndarray:
        return np.exp(scaled(logits[part], highest, temperature).astype(dtype, copy=False))

    for dtype, doubt in (np.float32, doubt_in_float32), (np.float64, 0.0):
        ends = np.array([weights(part, dtype).sum(dtype=np.float64) for part in parts(logits)]).cumsum()
        chosen = int(ends.searchsorted(u * ends[-1], side="right"))
        sums = weights(parts(logits)[chosen], dtype).cumsum(dtype=np.float64)
        target = u * ends[-1] - (ends[chosen - 1] if chosen else 0.0)
        target = min(target, np.nextafter(sums[-1], 0))  # added in another order, the sum may differ in its last bit
        place = int(sums.searchsorted(target, side="right"))
        start = sums[place - 1] if place else 0.0
        if start + doubt * ends[-1] <= target < sums[place] - doubt * ends[-1]:
            break
    return chosen * PART + place


def parts(logits: np.ndarray) -> list[slice]:
    """Slices that cover the logits, small enough that what is computed from one stays in the cache."""
    return [slice(start, start + PART) for start in range(0, len(logits), PART)]


def scaled(logits: np.ndarray, highest: np.floating, temperature: float) -> np.ndarray:
    """(logits - highest) / temperature in float64; its exp is the weight."""
    return (logits - np.float64(highest)) / temperature


def logprobs(logits: np.ndarray, token: int, n: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token and the n most likely tokens with theirs: log-softmax of the logits in float64."""
    highest = logits.max()
    log_total = float(highest) + math.log(sum(np.exp(scaled(logits[part], highest, 1)).sum() for part in parts(logits)))
    n = min(n, len(logits))
    top = head(logits, n, np.partition(logits, -n)[-n]) if n else np.empty(0, int)
    top = top[np.argsort(-logits[top], kind="stable")]
    return float(logits[token]) - log_total, tuple((int(i), float(logits[i]) - log_total) for i in top)
