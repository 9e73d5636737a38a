"""How the tokens of one request are chosen: the parameters, their ranges and their defaults."""

import operator
import secrets
import sys
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from llama3.errors import RequestError

HIGHEST_DRAWN_SEED = 9_999_999_999  # the highest seed of Cloudflare Workers AI: a drawn seed works there, too


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Numbers may be NumPy's; None stands for the default value of each parameter.

    Raises RequestError with the parameter's name, what was found and the range.
    """

    temperature: float = 0.6  # 0: always the most likely token
    top_p: float | None = None  # the fewest tokens whose probabilities sum to at least top_p; None or 1: all
    top_k: int | None = None  # the top_k most likely tokens; None: all
    min_p: float | None = None  # tokens at least min_p times as likely as the most likely one; None or 0: all
    seed: int | None = None  # None: a random one is drawn
    repetition_penalty: float = 1.0  # prompt and output tokens: divides logits > 0, multiplies others; 0 or 1: off
    frequency_penalty: float = 0.0  # subtracted for each time a token is in the output
    presence_penalty: float = 0.0  # subtracted once if a token is in the output
    logprobs: int | None = None  # n: report the log-probability of the chosen token and of the n most likely ones

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
        """The same parameters, with a random seed if they have none."""
        return self if self.seed is not None else replace(self, seed=1 + secrets.randbelow(HIGHEST_DRAWN_SEED))

    def _check(self, name: str, kind: type[int] | type[float], low: int, high: int | None = None) -> None:
        """Refuse a wrong type, NaN, infinity and values out of range; turn other kinds of numbers into Python's."""
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        if value is None:
            object.__setattr__(self, name, default)
            return
        number = whole_number(value) if kind is int else real_number(value)
        if number is None or not low <= number <= (sys.float_info.max if high is None else high):
            limits = f"not below {low}" if high is None else f"from {low} to {high}"
            expected = f"a {'whole' if kind is int else 'finite'} number {limits}"
            raise RequestError(f"{name} is {value!r}: expected {expected}")
        object.__setattr__(self, name, kind(number))


def whole_number(value: Any) -> int | None:
    """The value as an int if it is of an integer type (int, NumPy's integers). None for other types, and for bool."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real_number(value: Any) -> Any:
    """The value if it is a real number (int, float, Fraction, NumPy's). None for other types, and for bool."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, bool) else None
