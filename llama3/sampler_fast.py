"""The sampler's filters and draw, without sorting the vocabulary.

Each filter takes the logits that are left and returns the indices that it keeps, ascending, or None for all. Sorting
128,256 logits would take longer than the rest of the sampler, so top_k partitions them, top_p sorts one bin of a
histogram, and the draw adds up float32 weights wherever float64 would choose the same token. `plain.survivors` sorts
the vocabulary; a test checks that both keep the same tokens.
"""

import math

import numpy as np

from llama3.sampling_params import SamplingParams

CHUNK = 8192  # logits whose weights are computed at once, so that the intermediate arrays stay in the L2 cache


def top_k(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The top_k highest logits."""
    if params.top_k is None or params.top_k >= len(logits):
        return None
    return highest_n(logits, params.top_k, np.partition(logits, -params.top_k)[-params.top_k])


def top_p(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The highest logits, as few as needed for their weights to sum to at least top_p of the total.

    A histogram of the weights over the scaled logits, highest first, shows in which bin the sum crosses top_p. Only
    the logits of that bin are sorted.
    """
    if params.top_p is None or params.top_p == 1:
        return None
    highest, temperature = logits.max(), params.temperature
    bins = np.empty(len(logits), np.int16)
    histogram = np.zeros(1025)  # the sum of the weights in bin i, which holds -(i + 1) / 16 < x <= -i / 16
    for part in chunks(logits):
        x = np.maximum(scaled(logits[part], highest, temperature), -64)  # below this a weight is lost in a float64 sum
        bins[part] = x * -16
        histogram += np.bincount(bins[part], np.exp(x), len(histogram))
    sums = histogram.cumsum()
    target = params.top_p * sums[-1]
    crossed = int(sums.searchsorted(target))
    inside = np.sort(logits[bins == crossed])[::-1]
    inside_sums = (sums[crossed - 1] if crossed else 0) + np.exp(scaled(inside, highest, temperature)).cumsum()
    last = min(int(inside_sums.searchsorted(target)), len(inside) - 1)  # rounding may leave the target above all sums
    return highest_n(logits, int(np.count_nonzero(bins < crossed)) + last + 1, inside[last])


def min_p(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The logits whose weight is at least min_p; the highest logit has weight 1."""
    if not params.min_p:
        return None
    return np.flatnonzero(logits >= np.float64(logits.max()) + params.temperature * math.log(params.min_p))


def highest_n(logits: np.ndarray, n: int, lowest: np.floating) -> np.ndarray:
    """The indices of the n highest logits, ascending. `lowest` is the n-th; of those equal to it the first are kept."""
    keep = logits >= lowest
    surplus = np.count_nonzero(keep) - n
    if surplus:
        keep[np.flatnonzero(logits == lowest)[-surplus:]] = False
    return np.flatnonzero(keep)


def draw(logits: np.ndarray, temperature: float, u: float) -> int:
    """The first index at which the running sum of the weights exceeds u times their total, 0 <= u < 1.

    The result is the same as with float64 weights. A weight of zero does not raise the sum, so it is never drawn.

    NumPy's exp is vectorised everywhere in float32 but not in float64, so float32 weights are tried first. Rounding
    before exp and in it (3 units in the last place) gives a weight a relative error of |scaled| * 2**-24 + 3 * 2**-23.
    The mean of |scaled| over the distribution is at most its entropy, which is at most log(n). So no running sum is
    wrong by more than the fraction `uncertainty` of the total. If u is that close to the border between two tokens,
    the sums are computed again in float64.
    """
    highest = logits.max()
    float32_uncertainty = math.log(len(logits)) * 2.0**-24 + 3 * 2.0**-23

    def weights(part: slice, dtype: type) -> np.ndarray:
        return np.exp(scaled(logits[part], highest, temperature).astype(dtype, copy=False))

    for dtype, uncertainty in (np.float32, float32_uncertainty), (np.float64, 0.0):
        ends = np.array([weights(part, dtype).sum(dtype=np.float64) for part in chunks(logits)]).cumsum()
        chosen = int(ends.searchsorted(u * ends[-1], side="right"))
        sums = weights(chunks(logits)[chosen], dtype).cumsum(dtype=np.float64)
        target = u * ends[-1] - (ends[chosen - 1] if chosen else 0.0)
        target = min(target, np.nextafter(sums[-1], 0))  # summed in another order, the last bit may differ
        index = int(sums.searchsorted(target, side="right"))
        start = sums[index - 1] if index else 0.0
        margin = uncertainty * ends[-1]
        if start + margin <= target < sums[index] - margin:
            break
    return chosen * CHUNK + index


def logprobs(logits: np.ndarray, token: int, n: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token, and the n most likely tokens with theirs: log-softmax in float64."""
    highest = logits.max()
    total = sum(np.exp(scaled(logits[part], highest, 1)).sum() for part in chunks(logits))
    log_total = float(highest) + math.log(total)
    n = min(n, len(logits))
    top = highest_n(logits, n, np.partition(logits, -n)[-n]) if n else np.empty(0, int)
    top = top[np.argsort(-logits[top], kind="stable")]
    return float(logits[token]) - log_total, tuple((int(i), float(logits[i]) - log_total) for i in top)


def chunks(logits: np.ndarray) -> list[slice]:
    """Slices of CHUNK that cover the logits."""
    return [slice(start, start + CHUNK) for start in range(0, len(logits), CHUNK)]


def scaled(logits: np.ndarray, highest: np.floating, temperature: float) -> np.ndarray:
    """(logits - highest) / temperature in float64; its exp is the weight."""
    return (logits - np.float64(highest)) / temperature
