"""The pictures of the tour that llama3/inspect/svg.py has no function for."""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray as Array

from llama3.config import ModelConfig
from llama3.inspect.svg import bars, document, heat_map, lines, text

__all__ = ["Picture", "bars", "groups", "heat_map", "lines", "machine", "maps", "merges", "pins", "threads", "wheels"]


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


def machine(columns: dict[str, ModelConfig], T: int) -> str:
    """The steps from tokens to logits, and the shape of what leaves each step, for T tokens and one or more models."""
    first, name, step, top, wide = 36, 250, 34, 66, 190  # px
    rows = [step_shapes(c, T) for c in columns.values()]
    body = [text(4, 16, f"The machine, for {T} tokens", classes="bold")]
    body += [text(name + wide * (j + 0.5), top - 14, label, anchor="middle") for j, label in enumerate(columns)]
    end = top + step * len(rows[0])
    body.append(f'<path d="M18 {top + step * 0.5:.0f}V{end - step * 0.5:.0f}" class="s1" stroke-width="4"/>')
    for i, (label, _) in enumerate(rows[0]):
        y, indent = top + step * i, 26 if label.startswith(" ") else 0
        if label.endswith("+"):  # what is added to the residual stream
            body.append(f'<path d="M{first + indent} {y + 15}H22" class="s1" stroke-width="2"/>')
        box = f'x="{first + indent}" y="{y + 3}" width="{name - first - indent - 8}" height="{step - 8}" rx="5"'
        body.append(f'<rect {box} class="s0"/>')
        body.append(text(first + indent + 8, y + 20, label.strip().removesuffix(" +")))
        shapes = [shapes[i][1] for shapes in rows]
        body += [text(name + wide * (j + 0.5), y + 20, s, anchor="middle") for j, s in enumerate(shapes)]
    notes = [f"{c.n_layers} layers" for c in columns.values()]
    body += [text(name + wide * (j + 0.5), end + 20, s, anchor="middle", classes="h1") for j, s in enumerate(notes)]
    body.append(text(first, end + 20, "indented: once in each layer", classes="h1"))
    return document(name + wide * len(columns) + 8, end + 34, body, "The machine on one page")


def step_shapes(c: ModelConfig, T: int) -> list[tuple[str, str]]:
    """(step, shape of its output) in the order of computation. " " in front: in each layer; "+" behind: added to x."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("embedding", (T, c.dim)),
        (" RMSNorm", (T, c.dim)),
        (" queries", (T, c.n_heads, c.head_dim)),
        (" keys, values", (T, c.n_kv_heads, c.head_dim)),
        (" RoPE on q and k", (T, c.n_heads, c.head_dim)),
        (" attention weights", (c.n_heads, T, T)),
        (" attention output +", (T, c.dim)),
        (" RMSNorm", (T, c.dim)),
        (" gate, up", (T, c.hidden_dim)),
        (" feed-forward output +", (T, c.dim)),
        ("RMSNorm", (T, c.dim)),
        ("logits", (T, c.vocab_size)),
    ]
    return [(name, " x ".join(f"{n:,}" for n in shape)) for name, shape in shapes]


def merges(steps: Sequence[Sequence[str]], title: str) -> str:
    """A row of boxes for each step: the parts of a word before the first merge, after it, and so on."""
    unit, step, top = 40, 40, 30  # px; a character has one unit
    body = [text(4, 16, title, classes="bold")]
    for i, parts in enumerate(steps):
        x, y = 90.0, top + step * i
        body.append(text(80, y + 22, f"{len(parts)} parts" if len(parts) > 1 else "1 token", anchor="end"))
        for part in parts:
            wide = unit * len(part)
            body.append(f'<rect x="{x + 2:.0f}" y="{y + 4}" width="{wide - 4}" height="28" rx="5" class="s0"/>')
            body.append(text(x + wide / 2, y + 22, part.replace(" ", "\u2423"), anchor="middle"))
            x += wide
    width = max(110 + unit * sum(len(part) for part in steps[0]), 8 * len(title))
    return document(width, top + step * len(steps) + 8, body, title)


def groups(n_heads: int, n_kv_heads: int, title: str) -> str:
    """Query heads above, key and value heads below, and a line from each query head to the head that it reads."""
    step, top = 44, 34  # px
    each, group = n_heads // n_kv_heads, n_heads // n_kv_heads
    body = [text(4, 16, title, classes="bold")]
    for j in range(n_heads):
        x, hue = 8 + step * j, j // group % 5
        target = 8 + step * (j // group * each + (each - 1) / 2)
        body.append(f'<path d="M{x + 18} {top + 26}L{target + 18:.0f} {top + 86}" class="s{hue}" stroke-width="1.5"/>')
        body.append(f'<rect x="{x}" y="{top}" width="36" height="26" rx="5" class="s{hue}" stroke-width="1.5"/>')
        body.append(text(x + 18, top + 17, f"q {j}", anchor="middle"))
    for g in range(n_kv_heads):
        x = 8 + step * (g * each + (each - 1) / 2)
        body.append(f'<rect x="{x - 8:.0f}" y="{top + 86}" width="52" height="26" rx="5" class="h{g % 5}"/>')
        body.append(text(x + 18, top + 103, f"k v {g}", anchor="middle", classes="back"))
    return document(max(16 + step * n_heads, 8 * len(title)), top + 122, body, title)


def pins(rows: dict[str, tuple[Sequence[float], Sequence[str]]], u: float) -> str:
    """A line from 0 to 1 for each row, divided by its probabilities, and a pin at u. rows: name -> (p, labels)."""
    left, long, step, top = 210, 600, 40, 44  # px
    body = [text(4, 16, f"The line of probabilities, and the random number u = {u:g}", classes="bold")]
    for i, (name, (p, labels)) in enumerate(rows.items()):
        y, x = top + step * i, float(left)
        body.append(text(left - 8, y + 18, name, anchor="end"))
        for j, (share, label) in enumerate(zip(p, labels)):
            wide = long * float(share)
            if wide < 1:  # too thin to be drawn
                x += wide
                continue
            chosen = x <= left + long * u < x + wide
            place = f'x="{x:.1f}" y="{y}" width="{max(wide - 1, 0.5):.1f}" height="26"'
            body.append(f'<rect {place} class="h{1 if chosen else 0}" fill-opacity="{0.8 if j % 2 else 1}"/>')
            if wide > 8 * len(label) + 4:
                body.append(text(x + wide / 2, y + 17, label, anchor="middle", classes="back"))
            x += wide
        body.append(f'<rect x="{left}" y="{y}" width="{long}" height="26" class="line"/>')
    at, end = left + long * u, top + step * len(rows)
    body.append(f'<path d="M{at:.1f} {top - 10}V{end}" class="s1" stroke-width="2"/>')
    body.append(text(at, top - 14, "u", anchor="middle", classes="h1"))
    return document(left + long + 12, end + 8, body, "Sampling")


def threads(rows: int, groups: int, titles: Sequence[str], names: Sequence[Sequence[Sequence[str]]]) -> str:
    """Two tables side by side, rows x groups of channels: names[i][row][group] is the thread that reads them."""
    wide, high, top, gap = 44, 24, 62, 40  # px
    body = []
    for n, (title, table) in enumerate(zip(titles, names)):
        x0 = 60 + n * (groups * wide + gap)
        body.append(text(x0, 16, title, classes="bold"))
        body += [text(x0 + wide * (j + 0.5), top - 8, f"{8 * j}-", anchor="middle") for j in range(groups)]
        hues = {name: i for i, name in enumerate(dict.fromkeys(name for row in table for name in row))}
        for i, row in enumerate(table):
            y = top + high * i
            for j, name in enumerate(row):
                place = f'x="{x0 + wide * j}" y="{y}" width="{wide - 2}" height="{high - 2}"'
                body.append(f'<rect {place} class="h{hues[name] % 5}" fill-opacity="0.3"/>')
                body.append(text(x0 + wide * (j + 0.5), y + 16, name, anchor="middle"))
    body.append(text(4, top - 8, "channel"))
    body += [text(4, top + high * i + 16, f"row {i}") for i in range(rows)]
    return document(60 + 2 * (groups * wide + gap), top + high * rows + 10, body, "Which thread reads what")
