"""Changes that a caller makes to the raw logits of a request before the sampler: a bias, and a processor function."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llama3.errors import LogitsError, RequestError
from llama3.sampling_params import real_number, whole_number

LogitsProcessor = Callable[[list[int], np.ndarray], np.ndarray]  # (tokens so far, logits (vocab_size,)) -> logits
Adjust = Callable[[Sequence[int], np.ndarray], np.ndarray]  # the same, with bias and processor combined


def adjustment(
    logit_bias: Mapping[int, float] | None, processor: LogitsProcessor | None, vocab_size: int
) -> Adjust | None:
    """A function that adds the bias, then calls the processor; None if there is neither. It copies its argument.

    logit_bias: token id -> the number added to its logit; -inf forbids the token. Raises RequestError for an invalid
    bias or processor. The function raises LogitsError if the processor fails or does not return logits.
    """
    ids, values = _checked_bias(logit_bias, vocab_size)
    if processor is not None and not callable(processor):
        raise RequestError(f"logits_processor is {type(processor).__name__}; expected a function of (tokens, logits)")
    if processor is None and not len(ids):
        return None

    def adjust(tokens: Sequence[int], logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[ids] = np.minimum(logits[ids] + values, np.finfo(np.float32).max)
        return logits if processor is None else _processed(processor, list(tokens), logits)

    return adjust


def _checked_bias(bias: Mapping[int, float] | None, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """-> (ids (n,) int64, values (n,) float64)"""
    if bias is not None and not isinstance(bias, Mapping):
        raise RequestError(f"logit_bias is {type(bias).__name__}; expected a mapping of token ids to numbers")
    ids, values = [], []
    for token, value in (bias or {}).items():
        id, number = whole_number(token), real_number(value)
        if id is None or not 0 <= id < vocab_size:
            raise RequestError(f"logit_bias names token {token!r}; expected an id from 0 to {vocab_size - 1}")
        if number is None or not number < math.inf:  # NaN compares false
            raise RequestError(f"logit_bias of token {id} is {value!r}; expected a finite number, or -inf to forbid it")
        ids.append(id)
        values.append(float(number))
    return np.array(ids, np.int64), np.array(values, np.float64)


def _processed(processor: LogitsProcessor, tokens: list[int], logits: np.ndarray) -> np.ndarray:
    try:
        result: Any = processor(tokens, logits)
    except Exception as error:
        raise LogitsError(f"logits_processor raised {type(error).__name__}: {error}") from error
    if not isinstance(result, np.ndarray) or result.shape != logits.shape or result.dtype.kind != "f":
        found = f"{result.dtype} of shape {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
        raise LogitsError(f"logits_processor returned {found}; expected float32 of shape {logits.shape}")
    with np.errstate(over="ignore"):
        result = result.astype(np.float32)
    if not result.max() < np.inf:  # the maximum is NaN if any logit is
        token = int(np.flatnonzero(~(result < np.inf))[0])
        raise LogitsError(f"logits_processor made the logit of token {token} {result[token]}; expected below infinity")
    return result
