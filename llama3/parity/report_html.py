"""The report as one HTML page with plots. It asks no other host for anything, and needs no script."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy import ndarray as Array

from llama3.parity.report import Report

WIDTH, HEIGHT, LEFT, BOTTOM = 880, 220, 60, 24  # of a plot, in pixels; the axes stand at LEFT and BOTTOM
POINTS = 2000  # of a curve; of more positions, the worst of each stretch is drawn
SMALLEST = 1e-9  # errors below are drawn here: the axis is logarithmic
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #2563c9; --limit: #c02626; --faint: #8886; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161616; --line: #7db0ff; --limit: #ff7a7a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--faint); } .curve { stroke: var(--line); fill: none; stroke-width: 1.5; }
.bar, .point { fill: var(--line); } .over { fill: var(--limit); }
.limit { stroke: var(--limit); stroke-dasharray: 5 4; }
pre { overflow-x: auto; font-size: 13px; } .cause { border-left: 4px solid var(--limit); padding-left: 1rem; }
"""


def page(report: Report) -> str:
    """The whole page."""
    verdict = "Equal within the limits" if report.ok else "Different"
    parts = [f"<h1>{verdict}</h1>"]
    if report.explanation is not None and report.explanation.lines:
        parts.append('<div class="cause">' + "".join(f"<p>{_text(s)}</p>" for s in report.explanation.lines) + "</div>")
    parts += ["<h2>Relative error of the logits, by position</h2>", _curve(report)]
    if report.activations:
        names = list(report.activations)
        worst = [float(rows["relative"].max()) for rows in report.activations.values()]
        title = "<h2>Largest relative error of each activation, in the order of computation</h2>"
        parts += [title, _bars(names, worst, report.activation_rtol)]
    if report.explanation is not None and report.explanation.tried:
        nearest = report.explanation.tried[:10]
        names = [t.fault.what + ("" if t.layer is None else f" (layer {t.layer})") for t in nearest]
        title = "<h2>Distance from the other side with each fault planted, nearest first</h2>"
        parts += [title, _bars(names, [t.distance for t in nearest], report.explanation.right)]
    parts += ["<h2>The whole report</h2>", f"<pre>{_text(str(report))}</pre>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{verdict}</title>'
    head += f"<style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _curve(report: Report) -> str:
    errors, positions = report.logits["relative"], report.reference.positions
    step = -(-len(errors) // POINTS)
    worst = [int(np.argmax(errors[i : i + step])) + i for i in range(0, len(errors), step)]  # NaN counts as the largest
    y, ticks = _axis([*errors[worst], report.rtol])
    span = max(1, int(positions[-1] - positions[0]))
    x = LEFT + (positions[worst] - positions[0]) / span * (WIDTH - LEFT - 10)  # (points,)
    points = " ".join(f"{a:.1f},{y(e):.1f}" for a, e in zip(x, errors[worst]))
    shape = f'<polyline class="curve" points="{points}"/>'
    if len(worst) < 100:
        shape += "".join(
            f'<circle class="point" cx="{a:.1f}" cy="{y(e):.1f}" r="3"/>' for a, e in zip(x, errors[worst])
        )
    ends = [(LEFT, "start", positions[0]), (WIDTH - 10, "end", positions[-1])]
    marks = "".join(f'<text x="{a}" y="{HEIGHT - 6}" text-anchor="{side}">{p}</text>' for a, side, p in ends)
    limit = f'<line class="limit" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(report.rtol):.1f}" y2="{y(report.rtol):.1f}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{ticks}{marks}{limit}{shape}</svg>'


def _axis(values: Sequence[float]) -> tuple[Callable[[float], float], str]:
    """A logarithmic axis for these values -> (value -> y, the SVG of its lines)."""
    logs = np.log10(np.clip(np.nan_to_num(np.array(values, float), nan=1e3, posinf=1e3), SMALLEST, 1e3))  # (values,)
    low, high = int(np.floor(logs.min())), int(np.ceil(logs.max() + 0.1))

    def y(value: float) -> float:
        value = float(np.clip(np.nan_to_num(value, nan=1e3, posinf=1e3), SMALLEST, 1e3))
        return 10 + (high - np.log10(value)) / max(1, high - low) * (HEIGHT - BOTTOM - 20)

    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(10.0**e):.1f}" y2="{y(10.0**e):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(10.0**e) + 4:.1f}" text-anchor="end">1e{e}</text>'
        for e in range(low, high + 1)
    )
    return y, lines


def _bars(names: Sequence[str], values: Sequence[float], limit: float) -> str:
    """Horizontal bars on a logarithmic scale, red where the limit is exceeded."""
    logs = _logs(np.array([*values, limit]))  # (values + 1,)
    low, high = logs.min() - 0.5, logs.max() + 0.1
    share = (logs - low) / (high - low) * (WIDTH - 90)  # (values + 1,): pixels
    rows = "".join(
        f'<text x="0" y="{40 * i + 13}">{_text(name[:130])}</text>'
        f'<rect class="{"bar" if value <= limit else "bar over"}" x="0" y="{40 * i + 18}" width="{w:.1f}" height="14"/>'
        f'<text x="{w + 6:.1f}" y="{40 * i + 29}">{value:.1e}</text>'
        for i, (name, value, w) in enumerate(zip(names, values, share))
    )
    height = 40 * len(names) + 6
    mark = f'<line class="limit" x1="{share[-1]:.1f}" x2="{share[-1]:.1f}" y1="0" y2="{height}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{rows}{mark}</svg>'


def _logs(values: Array) -> Array:
    return np.log10(np.clip(np.nan_to_num(values, nan=1e3, posinf=1e3), SMALLEST, 1e3))


def _text(text: str) -> str:
    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
