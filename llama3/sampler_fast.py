"""The sampler's filters and its draw without a sort: histograms, partitions, and float32 where it decides the same.

A filter takes the logits that are left and returns indices into them. `plain.sample` sorts instead, and a test holds
the two to the same tokens.
"""

import math

import numpy as np

from llama3.sampling_params import SamplingParams

TOKENS_AT_ONCE = 8192  # tokens whose weights are computed together; they stay in the L2 cache


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
    return chosen * TOKENS_AT_ONCE + place


def logprobs(logits: np.ndarray, token: int, n: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token and the n most likely tokens with theirs: log-softmax of the logits in float64."""
    highest = logits.max()
    log_total = float(highest) + math.log(sum(np.exp(scaled(logits[part], highest, 1)).sum() for part in parts(logits)))
    n = min(n, len(logits))
    top = head(logits, n, np.partition(logits, -n)[-n]) if n else np.empty(0, int)
    top = top[np.argsort(-logits[top], kind="stable")]
    return float(logits[token]) - log_total, tuple((int(i), float(logits[i]) - log_total) for i in top)


def parts(logits: np.ndarray) -> list[slice]:
    """Slices that cover the logits, small enough that what is computed from one stays in the cache."""
    return [slice(start, start + TOKENS_AT_ONCE) for start in range(0, len(logits), TOKENS_AT_ONCE)]


def scaled(logits: np.ndarray, highest: np.floating, temperature: float) -> np.ndarray:
    """(logits - highest) / temperature in float64; its exp is the weight."""
    return (logits - np.float64(highest)) / temperature
