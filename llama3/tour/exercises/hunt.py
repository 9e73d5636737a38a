"""The bug hunt: the demo with one wrong line. The reader sees what differs, and finds out which line it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np

from llama3 import plain
from llama3.errors import RequestError
from llama3.sampling_params import SamplingParams
from llama3.tour.exercises import demo, feed_forward, rotate
from llama3.tour.exercises.attention import later, raw
from llama3.tour.exercises.describe import LIMIT, wrong_rows

SHOWN = (
    "attention_norm",
    "q",
    "k",
    "v",
    "q_rope",
    "k_rope",
    "heads.1.scores",
    "heads.1.weights",
    "attention",
    "gate",
    "up",
)
SIGNS = {  # word -> what this bug would change first
    "embedding": "tok_embeddings, before any layer",
    "norm": "attention_norm, the first thing that a layer computes",
    "layout": "q_rope and k_rope from position 1 on, since position 0 is not turned",
    "positions": "q_rope and k_rope at every position, also at 0",
    "scale": "the scores, everywhere by the same factor, and not their mask",
    "mask": "the scores of keys after the query, and no others",
    "values": "v, and with the right weights another output of attention",
    "swapped": "feed_forward, although gate and up are right",
}


@dataclass(frozen=True)
class Bug:
    word: str
    plant: Callable[[], AbstractContextManager]
    about: str


def leak(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Each position also sees the next one."""
    return np.where(later(q, 2), -np.inf, raw(q, k))


def unscaled(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.where(later(q), -np.inf, q @ k.T)


BUGS = (
    Bug(
        "layout",
        lambda: patch.object(plain, "rotate", rotate.adjacent),
        "RoPE pairs channels 2 i and 2 i + 1, and these weights pair i and i + head_dim / 2",
    ),
    Bug(
        "swapped",
        lambda: feed_forward.replaced(feed_forward.network(lambda gate, up: feed_forward.silu(up) * gate)),
        "silu is applied to up instead of gate",
    ),
    Bug(
        "mask",
        lambda: patch.object(plain, "attention_scores", leak),
        "the mask is off by one, so that each position sees the next token",
    ),
    Bug(
        "scale",
        lambda: patch.object(plain, "attention_scores", unscaled),
        "the scores are not divided by sqrt(head_dim)",
    ),
)


def find(number: str) -> Bug:
    """The bug of a hunt. Raises RequestError if there is no such hunt."""
    if number not in [str(n) for n in range(1, len(BUGS) + 1)]:
        raise RequestError(f"there is no hunt {number!r}; expected 1 to {len(BUGS)}")
    return BUGS[int(number) - 1]


def answers(bug: Bug) -> tuple[str, str]:
    """The right answer to the tour's question, and the demo's with the bug."""
    greedy = SamplingParams(temperature=0)
    _, right = demo.as_it_is(greedy)
    with bug.plant():
        return right, demo.answer(greedy)


def clues(bug: Bug) -> list[tuple[str, str]]:
    """(activation, how it differs from the right one), in the order of computation."""
    expected = activations()
    with bug.plant():
        found = activations()
    return [(name, compared(found[name], value)) for name, value in expected.items()]


def activations() -> dict[str, np.ndarray]:
    """The embedding and layer 0 on the tour's prompt."""
    seen: dict[str, np.ndarray] = {}
    names = {"tok_embeddings", *(f"layers.0.{name}" for name in SHOWN), "layers.0.feed_forward"}

    def see(name: str, value: np.ndarray) -> None:
        if name in names:
            seen[name] = value

    _, _, prompt = demo.demo()
    demo.forward(prompt, see)
    return seen


def compared(found: np.ndarray, expected: np.ndarray) -> str:
    """Where an activation differs, in a few words. Scores are compared entry by entry: those of a mask are -inf."""
    masked = ~np.isfinite(expected)
    if masked.any():
        leaks = np.argwhere(np.isfinite(found) & masked)
        if len(leaks):
            return f"{len(leaks)} scores are numbers that should be -inf, the first at {leaks[0].tolist()}"
        kept = ~masked
        factors = found[kept] / expected[kept]
        found, expected = np.where(kept, found, 0), np.where(kept, expected, 0)
        if len(wrong_rows(found, expected)) and np.ptp(factors) <= LIMIT * abs(factors[0]):
            return f"each is the right one times {factors[0]:.4g}"
    wrong = wrong_rows(found, expected)
    if not len(wrong):
        return "same"
    if wrong.tolist() == list(range(wrong[0], len(expected))):
        return f"differs from position {wrong[0]} on" if wrong[0] else "differs at every position"
    return f"first differs at position {wrong[0]}; {len(expected) - len(wrong)} of {len(expected)} positions are right"


def judge(bug: Bug, word: str) -> tuple[bool, str]:
    """Whether the word names the bug, and a sentence on it. Raises RequestError for a word that is not in the list."""
    if word not in SIGNS:
        raise RequestError(f"{word!r} is not one of the bugs: {', '.join(SIGNS)}")
    if word == bug.word:
        return True, f"right: {bug.about}"
    return False, f"no: {word} would first change {SIGNS[word]}"
