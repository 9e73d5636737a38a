"""An `Inspection` as plain values, for `llama3 inspect --json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama3.inspect.run import Inspection
from llama3.inspect.without import Part, name_of


def as_dict(seen: Inspection, heads: Sequence[Part] = ()) -> dict[str, Any]:
    """heads: those whose whole attention weights are wanted, by the key "LAYER.HEAD" of "attention"."""
    text = seen.vocabulary
    return {
        "model": seen.model,
        "tokens": [{"id": t.id, "text": t.text, "bytes": t.bytes.hex(), "special": t.special} for t in seen.tokens],
        "prompt_tokens": seen.n_prompt,
        "answer": {"text": seen.answer.text, "finish_reason": seen.answer.finish_reason, "seed": seen.answer.seed},
        "sampling": {name: value for name, value in vars(seen.params).items() if name != "logprobs"},
        "steps": [
            {
                "position": step.position,
                "token": step.token,
                "text": text[step.token],
                "probability": step.probability,
                "entropy": step.entropy,
                "u": step.u,
                "rivals": [
                    {"token": token, "text": text[token], **{name: p[i] for name, p in step.stages.items()}}
                    for i, token in enumerate(step.rivals)
                ],
                "left": step.left,
            }
            for step in seen.steps
        ],
        "attention": {name_of(part): numbers(seen.attention[part[0], int(part[1])]) for part in heads},
        "lens": {
            point: [
                {"likely": [[text[t], round(float(p), 4)] for t, p in zip(tokens, shares)], "next": rounded(following)}
                for tokens, shares, following in zip(
                    seen.lens.tokens[s].tolist(), seen.lens.probabilities[s], seen.lens.of_next[s]
                )
            ]
            for s, point in enumerate(seen.lens.points)
        },
        "norms": {point: numbers(row) for point, row in zip(seen.lens.points, seen.norms)},
        "without": [
            {
                "parts": [name_of(part) for part in a.parts],
                "text": a.text,
                "tokens": a.tokens,
                "same_tokens": a.same,
                "loss": float(a.loss),
            }
            for a in seen.ablations
        ],
        "operations": [vars(operation) for operation in seen.operations],
    }


def numbers(array: np.ndarray) -> Any:
    return np.round(array.astype(np.float64), 5).tolist()


def rounded(value: np.floating) -> float | None:
    """JSON has no NaN: the last position has no next token."""
    return None if np.isnan(value) else round(float(value), 4)
