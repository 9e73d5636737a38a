"""The report as one HTML page with plots. It asks no other host for anything, and needs no script."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy import ndarray as Array

from llama3.parity.compact import CompactReport
from llama3.parity.explanation import NEAREST
from llama3.parity.report import Report
from llama3.resources import resource

POINTS = 1000  # of a curve; of more positions, the worst of each stretch is drawn
FOLDED = 100  # with more activations, a reader must ask for their bars
DOTS = 60  # with at most so many positions, each is a dot
SMALLEST, LARGEST = 1e-9, 1e3  # what is drawn: the axes are logarithmic. NaN is drawn as the largest
LIMIT = "The dashed line is the limit"


def page(report: Report | CompactReport) -> str:
    """The whole page."""
    verdict = "Equal within the limits" if report.ok else "Different"
    parts = [f"<header><h1>{verdict}</h1></header><main>", _verdict(report)]
    if isinstance(report, CompactReport):
        errors, positions = report.relative, np.arange(len(report.relative))
    else:
        errors, positions = report.logits["relative"], report.reference.positions
    note = f"{LIMIT}, {report.rtol:.1e}. Position 0 is the first token."
    parts += [_section("Relative error of the logits, by position", note, _curve(errors, positions, report.rtol))]
    if isinstance(report, Report) and report.activations:
        worst = [float(rows["relative"].max()) for rows in report.activations.values()]
        note = f"The worst row of each, in the order of computation. {LIMIT}, {report.activation_rtol:.1e}."
        bars = _bars(list(report.activations), worst, report.activation_rtol)
        if len(worst) > FOLDED:
            bars = f"<details><summary>{len(worst)} activations</summary>{bars}</details>"
        parts.append(_section("Relative error of the activations", note, bars))
    if isinstance(report, Report) and report.explanation is not None and report.explanation.tried:
        nearest = report.explanation.tried[:NEAREST]
        names = [t.fault.what + ("" if t.layer is None else f" (layer {t.layer})") for t in nearest]
        right = report.explanation.right
        note = f"How far from the other side's logits each fault's are, nearest first. Dashed: no fault, {right:.1e}."
        bars = _bars(names, [t.distance for t in nearest], right, warn=False)
        parts.append(_section("Faults that were tried", note, bars))
    parts.append(_section("The whole report", "", f"<pre>{_text(str(report))}</pre>") + "</main>")
    style = "".join(resource("static", name).read_text(encoding="utf-8") for name in ("base.css", "report.css"))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{verdict}</title>'
    head += f"<style>\n{style}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _verdict(report: Report | CompactReport) -> str:
    """What was compared, and what was found."""
    r = report.reference
    ours = f"{report.ours} against " if isinstance(report, Report) else ""
    found = [f"<p>{_text(f'{ours}{r.model} ({r.producer}, {r.dtype}), {len(r.tokens)} tokens')}</p>"]
    found += [f"<p>{_text(breach)}</p>" for breach in report.breaches]
    if isinstance(report, CompactReport):
        found += [f"<p>the weights of {_text(name)} are not the reference's</p>" for name in report.other_weights[:3]]
    elif report.explanation is not None:
        found += [f"<p><strong>{_text(line)}</strong></p>" for line in report.explanation.lines[:1]]
        found += [f"<p>{_text(line)}</p>" for line in report.explanation.lines[1:]]
    return f'<section class="panel {"right" if report.ok else "wrong"}">{"".join(found)}</section>'


def _section(title: str, note: str, content: str) -> str:
    words = f'<p class="note">{note}</p>' if note else ""
    return f'<section class="panel"><h2>{title}</h2>{words}{content}</section>'


def _curve(errors: Array, positions: Array, limit: float) -> str:
    """A curve over the positions. Its labels are HTML, so that they stay legible when the picture is narrow."""
    step = -(-len(errors) // POINTS)
    worst = [int(np.argmax(errors[i : i + step])) + i for i in range(0, len(errors), step)]  # NaN counts as the largest
    logs, bound = _logs(errors[worst]), float(_logs(np.array([limit]))[0])
    low, high = int(np.floor(min(logs.min(), bound))), int(np.ceil(max(logs.max(), bound) + 0.05))
    y = 100 * (high - logs) / (high - low)  # (points,): percent from above
    x = 100 * (positions[worst] - positions[0]) / max(1, int(positions[-1] - positions[0]))  # (points,)
    every = -(-(high - low) // 6)  # powers of ten between two labels
    ticks = range(low, high + 1, every)
    at = [100 * (high - e) / (high - low) for e in ticks]
    grid = "".join(f'<path class="grid" d="M0 {a:.2f}H100"/>' for a in at)
    dashed = f'<path class="limit" d="M0 {100 * (high - bound) / (high - low):.2f}H100"/>'
    line = "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y))
    dots = "".join(f'<path class="dot" d="M{a:.2f} {b:.2f}h0"/>' for a, b in zip(x, y) if len(worst) <= DOTS)
    labels = "".join(f'<span style="top:{a:.2f}%">1e{e}</span>' for a, e in zip(at, ticks))
    svg = f'{grid}{dashed}<path class="curve" d="M{line}"/>{dots}'
    ends = f"<span>{positions[0]}</span>" + (f"<span>{positions[-1]}</span>" if len(positions) > 1 else "")
    return (
        f'<div class="plot"><div class="axis">{labels}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="Errors by position">{svg}</svg>'
        f'<div class="ends">{ends}</div></div>'
    )


def _bars(names: Sequence[str], values: Sequence[float], limit: float, warn: bool = True) -> str:
    """Horizontal bars on a logarithmic scale. warn: in another colour where the limit is exceeded."""
    logs = _logs(np.array([*values, limit]))  # (values + 1,)
    low = np.floor(logs.min())
    high = max(logs.max(), low + 1)
    share = 100 * (logs - low) / (high - low)  # (values + 1,): percent
    rows = "".join(
        f"<li><span>{_text(name)}</span>"
        f'<div><i class="{"over" * (warn and not value <= limit)}" style="width:{w:.1f}%"></i>'
        f'<b style="left:{share[-1]:.1f}%"></b></div><output>{value:.1e}</output></li>'
        for name, value, w in zip(names, values, share)
    )
    return f'<ol class="bars">{rows}</ol>'


def _logs(values: Array) -> Array:
    """Base 10, of values that the axes can show."""
    return np.log10(np.clip(np.nan_to_num(values.astype(np.float64), nan=LARGEST), SMALLEST, LARGEST))


def _text(text: str) -> str:
    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
