"""From logits to a token: penalties, mask, temperature, top_k, top_p, min_p, and one draw; in this order.

A request's bias and logits processor come before all of these (`logit_hooks.py`).

A token's weight is exp((logit - highest logit) / temperature), in float64. Its probability is its weight divided by the
sum of the weights that are left. For each filter the tokens are ordered by logit, highest first, ties by lowest id, and
the filter keeps the first ones. The draw adds up the weights in the order of the ids.

`plain.sample` computes the same in 25 lines. This file has the sampler of a sequence and the order of the steps;
`sampler_fast.py` has the filters and the draw, which avoid sorting the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llama3.errors import LogitsError, RequestError
from llama3.logit_hooks import Adjust
from llama3.philox import uniform
from llama3.sampler_fast import draw, logprobs, min_p, top_k, top_p
from llama3.sampling_params import SamplingParams


class Sample(NamedTuple):
    """A chosen token. If logprobs were requested: its log-probability, and the most likely tokens, highest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class SequenceSampler:
    """The sampler of one sequence: its parameters, its seed, and the counts of its tokens that the penalties need."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        mask: Callable[[], np.ndarray | None] | None = None,
        adjust: Adjust | None = None,
    ):
        """mask: called before each draw; returns the allowed tokens, (vocab_size,) bool, or None if all are allowed.

        adjust: called before each draw with the tokens so far and the raw logits; returns those to sample from.
        """
        self.params = params.with_seed()
        self.seed: int = self.params.seed  # type: ignore[assignment]
        self.index = 0  # number of output tokens so far
        self.mask, self.adjust = mask, adjust
        self.tokens = list(prompt) if adjust is not None else []  # of prompt and output; kept for `adjust` only
        self._n_prompt = len(self.tokens)
        self.seen = np.zeros(vocab_size, bool)  # is this token in the prompt or the output?
        self.counts = np.zeros(vocab_size, np.int32)  # how often is it in the output?
        for token in prompt:
            self.seen[self._checked(token)] = True

    def accept(self, *tokens: int) -> None:
        """Count the next tokens of the output, drawn or forced."""
        for token in tokens:
            self._checked(token)
        if len(tokens) > 8:  # fewer are faster one by one
            self.seen[list(tokens)] = True
            np.add.at(self.counts, list(tokens), 1)
        else:
            for token in tokens:
                self.seen[token] = True
                self.counts[token] += 1
        if self.adjust is not None:
            self.tokens[self._n_prompt + self.index :] = tokens
        self.index += len(tokens)

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self.seen):
            raise RequestError(f"token id {token} is not in the vocabulary: expected 0 to {len(self.seen) - 1}")
        return token

    def sample(self, logits: np.ndarray) -> Sample:
        """Choose the next token from its raw logits, (vocab_size,) float32. Only `accept` changes the sampler.

        Raises LogitsError if a logit is NaN or +inf, if no token is left, or if the logits processor fails. A logit of
        -inf is never chosen.
        """
        assert logits.shape == self.seen.shape and logits.dtype == np.float32, (logits.shape, logits.dtype)
        if not logits.max() < np.inf:  # the maximum is NaN if any logit is
            token = int(np.flatnonzero(~(logits < np.inf))[0])
            raise bad_logit(token, logits[token])
        adjusted = logits if self.adjust is None else self.adjust(self.tokens, logits)
        with np.errstate(over="ignore"):  # a tiny temperature makes all but the highest logits -inf
            token = self._choose(penalised(adjusted, self.params, self.seen, self.counts))
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


def sample_rows(logits: np.ndarray, samplers: Sequence[SequenceSampler]) -> list[Sample | LogitsError]:
    """A token for each row of logits (n, vocab_size). A row that fails gives its error; the others go on."""
    samples: list[Sample | LogitsError] = []
    for row, sampler in zip(logits, samplers):
        try:
            samples.append(sampler.sample(row))
        except LogitsError as error:
            samples.append(error)
    return samples


def bad_logit(token: int, value: np.floating) -> LogitsError:
    return LogitsError(
        f"the logit of token {token} is {value}: expected finite numbers. "
        "Look for NaN or huge values in the checkpoint's weights, and whether config.json belongs to them"
    )


def no_token_left() -> LogitsError:
    return LogitsError("no token is left to choose from: the mask forbids all, or every logit is -inf")


def penalised(logits: np.ndarray, params: SamplingParams, seen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The logits minus the penalties, computed in float64 and rounded to float32 once.

    seen (vocab_size,) bool: is the token in the prompt or the output? counts (vocab_size,): how often in the output?
    """
    repetition = params.repetition_penalty or 1.0
    if repetition == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0:
        return logits
    ids = np.flatnonzero(seen)
    values = logits[ids].astype(np.float64)
    values = np.where(values > 0, values / repetition, values * repetition)  # less likely in both cases
    values -= params.frequency_penalty * counts[ids] + params.presence_penalty * (counts[ids] > 0)
    logits = logits.copy()
    logits[ids] = np.minimum(values, np.finfo(np.float32).max)  # a tiny repetition penalty must not overflow
    return logits


def choose(logits: np.ndarray, params: SamplingParams, u: float) -> int:
    """The index of the next token: the highest logit at temperature 0, else a draw from what the filters leave."""
    if len(logits) == 0 or logits.max() == -np.inf:
        raise no_token_left()
    if params.temperature == 0:
        return int(logits.argmax())  # of equal logits the first
    kept = survivors(logits, params)
    if kept is None:
        return draw(logits, params.temperature, u)
    return int(kept[draw(logits[kept], params.temperature, u)])


def survivors(logits: np.ndarray, params: SamplingParams) -> np.ndarray | None:
    """The indices that top_k, top_p and min_p leave, ascending; None: all. Each filters what the previous one left."""
    left = None
    for keep in (top_k, top_p, min_p):
        kept = keep(logits, params)
        if kept is not None:
            logits, left = logits[kept], kept if left is None else left[kept]
    return left
