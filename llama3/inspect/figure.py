"""A head's attention weights, or the logit lens, as a picture for a paper. Needs matplotlib, the extra `plot`."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama3.errors import RequestError
from llama3.inspect.run import Inspection
from llama3.inspect.without import Part, name_of


def need_matplotlib() -> None:
    """Raises RequestError if matplotlib is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise RequestError("--png and --svg need matplotlib: pip install 'llama3[plot]'; --html needs nothing")


def draw(seen: Inspection, heads: Sequence[Part], kind: str) -> bytes:
    """A file with a map of each head; without heads, of the lens. kind: "png" or "svg"."""
    need_matplotlib()
    from matplotlib.figure import Figure

    n = max(len(heads), 1)
    size = 1.5 + 0.14 * len(seen.tokens)  # inches: a token's name has 6 points
    tall = size if heads else 1.5 + 0.14 * len(seen.lens.points)
    figure = Figure(figsize=(size * n, tall), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    for axis, part in zip(axes, heads):
        weights = seen.attention[part[0], int(part[1])]  # (T, T)
        future = np.triu(np.ones_like(weights, bool), 1)
        axis.imshow(np.ma.array(weights, mask=future), cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"layer {part[0]}, head {name_of(part).split('.')[1]}", fontsize=8)
        names = [label(token.text) for token in seen.tokens]
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(names)), names, fontsize=6)
    if not heads:
        draw_lens(axes[0], seen)
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=200, bbox_inches="tight")
    return file.getvalue()


def draw_lens(axis: Any, seen: Inspection) -> None:
    """The probability of the token that follows, at each point of the residual stream."""
    following = seen.lens.of_next[:, :-1]  # (S, T - 1)
    axis.imshow(following, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(seen.lens.points)), seen.lens.points, fontsize=6)
    names = [label(token.text) for token in seen.tokens[1:]]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axis.set_title("probability of the token that follows", fontsize=8)


def label(text: str) -> str:
    """A token's text on one line; matplotlib reads text between two dollar signs as mathematics."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text).replace("$", r"\$")
