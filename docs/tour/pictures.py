"""The pictures of the tour that llama3/inspect/svg.py has no function for."""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray as Array

from llama3.inspect.svg import bars, document, heat_map, lines, text

__all__ = ["Picture", "bars", "heat_map", "lines", "maps", "wheels"]


class Picture(str):
    """An SVG that a notebook displays as a picture."""

    def _repr_svg_(self) -> str:
        return str(self)


def wheels(angles: Array, frequencies: Sequence[str], positions: Sequence[str], title: str) -> str:
    """angles (R, P) in radians -> R rows of P wheels, each with a hand at its angle: how far RoPE turns a pair."""
    size, left, top = 46, 76, 54  # px
    body = [text(4, 16, title, classes="bold")]
    body += [text(left + size * (j + 0.5), top - 8, name, anchor="middle") for j, name in enumerate(positions)]
    for i, row in enumerate(angles):
        y = top + size * (i + 0.5)
        body.append(text(left - 8, y + 4, frequencies[i], anchor="end"))
        for j, angle in enumerate(row):
            x = left + size * (j + 0.5)
            dx, dy = 17 * np.cos(angle), -17 * np.sin(angle)
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="18" class="line"/>')
            body.append(f'<path d="M{x:.1f} {y:.1f}l{dx:.1f} {dy:.1f}" class="s0" stroke-width="2.5"/>')
    return document(max(left + size * angles.shape[1], 8 * len(title)) + 8, top + size * len(angles) + 8, body, title)


def maps(weights: Array, row: int, title: str) -> str:
    """weights (layers, heads, T, T) -> a small map for each head. The row `row` of each is framed."""
    cell, gap = 7, 26  # px
    layers, heads, T, _ = weights.shape
    body = [text(4, 16, title, classes="bold")]
    for layer, head in np.ndindex(layers, heads):
        x0, y0 = 8 + head * (T * cell + gap), 46 + layer * (T * cell + gap)
        body.append(text(x0, y0 - 5, f"layer {layer}, head {head}"))
        for i, j in np.argwhere(weights[layer, head] >= 0.01):
            share = weights[layer, head, i, j]
            place = f'x="{x0 + j * cell}" y="{y0 + i * cell}" width="{cell}" height="{cell}"'
            body.append(f'<rect {place} class="h0" fill-opacity="{share:.2f}"/>')
        body.append(f'<rect x="{x0}" y="{y0}" width="{T * cell}" height="{T * cell}" class="line"/>')
        body.append(f'<rect x="{x0}" y="{y0 + row * cell}" width="{T * cell}" height="{cell}" class="s1"/>')
    return document(16 + heads * (T * cell + gap), 46 + layers * (T * cell + gap), body, title)
