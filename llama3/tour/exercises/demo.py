"""The demo with a reader's function in it: whether its logits are the same, and what it answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from llama3 import plain
from llama3.byte_pair import split
from llama3.chat import encode_dialog
from llama3.checkpoint import Checkpoint, load_folder
from llama3.parity.measures import compare_rows
from llama3.philox import uniform
from llama3.resources import resource
from llama3.sampling_params import SamplingParams
from llama3.tokenizer import Tokenizer
from llama3.tour.exercises.catalogue import Exercise

PROMPT = "What is RoPE?"  # of the whole tour
FLOAT32 = 1e-5  # the relative error of a row of logits that float32 may cause
LENGTH = 12  # tokens of an answer
SAMPLED = SamplingParams(temperature=1.5, top_p=0.7, seed=1)


@cache
def demo() -> tuple[Checkpoint, Tokenizer, list[int]]:
    """The demo, its tokenizer, and the prompt's tokens."""
    checkpoint = load_folder(resource("weights", "demo"))
    assert checkpoint.tokenizer is not None
    return checkpoint, checkpoint.tokenizer, encode_dialog(checkpoint.tokenizer, [{"role": "user", "content": PROMPT}])


def forward(tokens: Sequence[int], see: Callable | None = None) -> np.ndarray:
    """The logits of the demo, by plain.py as it is now. Its matrices are too small for two threads of BLAS."""
    checkpoint, _, _ = demo()
    with np.errstate(all="ignore"), blas().limit(limits=1):
        return plain.forward(tokens, checkpoint.config, checkpoint.weights, see)


@cache
def blas() -> ThreadpoolController:
    return ThreadpoolController()


def answer(params: SamplingParams) -> str:
    """The beginning of the answer to PROMPT, by plain.py as it is now."""
    _, tokenizer, prompt = demo()
    tokens = list(prompt)
    while len(tokens) < len(prompt) + LENGTH:
        row = forward(tokens)[-1]  # (vocab_size,)
        if not np.isfinite(row).any():
            return tokenizer.decode(tokens[len(prompt) :]) + " ... and then no number: all logits are NaN"
        tokens.append(plain.sample(row, params, uniform(params.seed or 0, len(tokens) - len(prompt))))
    return tokenizer.decode(tokens[len(prompt) :]).strip() + " ..."


@cache
def as_it_is(params: SamplingParams) -> tuple[np.ndarray, str]:
    """The logits of the prompt, and the answer, by plain.py unchanged."""
    return forward(demo()[2]), answer(params)


def in_the_demo(exercise: Exercise, installed: AbstractContextManager, alone: bool) -> Iterator[tuple[str, str]]:
    """The demo's part of the report. alone: whether the functions are right on the small inputs."""
    if exercise.name == "merge":
        yield from merged(installed)
        return
    _, _, prompt = demo()
    params = SAMPLED if exercise.name == "top_p" else SamplingParams(temperature=0)
    expected, right = as_it_is(params)
    with installed, np.errstate(all="ignore"):
        found, said = forward(prompt), answer(params)
    wrong = np.flatnonzero(~(compare_rows(found, expected)["relative"] <= FLOAT32))
    same = f"the answer to {PROMPT!r} is" if exercise.name == "top_p" else f"logits and answer to {PROMPT!r} are"
    if len(wrong):
        yield "wrong", f"in the demo: the logits of {len(wrong)} of {len(prompt)} positions differ, first at {wrong[0]}"
    elif said != right:
        yield "wrong", "in the demo: the answer is another one"
    elif alone:
        yield "right", f"in the demo: {same} the same"
    still = "still " if said == right and not alone else ""
    yield "", f"with your file the demo {still}answers: {said}"
    if said != right:
        yield "", f"and it should answer: {right}"


def merged(installed: AbstractContextManager) -> Iterator[tuple[str, str]]:
    """`merge` on the chunks of the tour's prompt and of a sentence, with the demo's vocabulary."""
    _, tokenizer, _ = demo()
    ranks = tokenizer.ranks
    for text in (PROMPT, "Rotary position embedding turns each pair of channels by an angle."):
        chunks = [chunk.encode() for chunk in split(text)]
        expected = [token for chunk in chunks for token in plain.merge(chunk, ranks)]
        with installed:
            found = [token for chunk in chunks for token in plain.merge(chunk, ranks)]
        pieces = " | ".join(tokenizer.decode([token]) for token in found)
        if found == expected:
            yield "right", f"with the demo's vocabulary: {pieces}"
        else:
            yield "wrong", f"with the demo's vocabulary: {pieces}"
            yield "", "and it should be: " + " | ".join(tokenizer.decode([token]) for token in expected)
