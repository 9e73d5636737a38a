"""Heat maps, bars and line charts as SVG text: no script, no library, light and dark by the reader's setting.

Each function returns a whole `<svg>` element, which can be a file of its own or stand inside an HTML page. A page may
set the CSS variables --ink, --faint, --paper and --hue-0 to --hue-4 to use colours of its own.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

FONT = 12  # px; a character is about 7 px wide in the monospaced font
CHARACTER = 7.3
HUES = ("#1763b6", "#c2410c", "#0f7b53", "#7c3aed", "#a16207")  # on a light page
DARK_HUES = ("#6cb2ff", "#ff9d5c", "#4fd1a1", "#b79cff", "#e3b341")


def document(width: float, height: float, body: Sequence[str], title: str) -> str:
    """The parts of a picture -> an `<svg>` element of this size, in px, with its style and a title for screen readers.

    Shapes take their colours from the classes ink, faint, line (a thin grid line), and h0 to h4 (a filled hue); s0 to
    s4 are strokes.
    """
    hues = "".join(f".h{i}{{fill:var(--hue-{i})}}.s{i}{{stroke:var(--hue-{i});fill:none}}" for i in range(len(HUES)))
    style = (
        f"text{{font:{FONT}px ui-monospace,Menlo,Consolas,monospace;fill:var(--ink);white-space:pre}}"
        ".faint{fill:var(--faint)}.line{stroke:var(--faint);stroke-opacity:.35;fill:none}"
        ".back{fill:var(--paper)}.bold{font-weight:700}" + hues
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" class="chart"><title>{escape(title)}</title><style>'
        f":root,.chart{{{_colours('#1d2433', '#667085', '#ffffff', HUES)}}}"
        f"@media(prefers-color-scheme:dark){{:root,.chart{{{_colours('#e6e9f0', '#98a2b3', '#14171f', DARK_HUES)}}}}}"
        f'{style}</style><rect class="back" width="100%" height="100%"/>' + "\n".join(body) + "</svg>\n"
    )


def _colours(ink: str, faint: str, paper: str, hues: Sequence[str]) -> str:
    return f"--ink:{ink};--faint:{faint};--paper:{paper};" + "".join(f"--hue-{i}:{h};" for i, h in enumerate(hues))


def text(x: float, y: float, words: str, *, anchor: str = "start", classes: str = "", turn: float = 0) -> str:
    """One line of text. anchor: start, middle or end. turn: degrees around (x, y)."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    kind = f' class="{classes}"' if classes else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}{turned}>{escape(words)}</text>'


def heat_map(
    values: np.ndarray,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    *,
    cell: float = 18,
    limit: float | None = None,
    digits: int | None = None,
) -> str:
    """values (R, C) -> R rows of C cells. A positive value is blue, a negative one orange, 0 or NaN the background.

    limit: the value with the full colour; None: the largest absolute value. digits: write each value into its cell with
    so many digits after the point. Each cell has its value as a tooltip.
    """
    values = np.asarray(values, np.float64)  # (R, C)
    assert values.ndim == 2, values.shape
    R, C = values.shape
    full = limit or float(np.nanmax(np.abs(values), initial=0)) or 1.0
    left = max((len(name) for name in rows), default=0) * CHARACTER + 10
    top = (24 if title else 6) + max((len(name) for name in columns), default=0) * CHARACTER + 6
    width = cell if digits is None else max(cell, (digits + 4) * CHARACTER)
    body = [text(4, 16, title, classes="bold")] if title else []
    body += [text(left - 5, top + (i + 0.5) * cell + 4, name, anchor="end") for i, name in enumerate(rows)]
    body += [text(left + (j + 0.5) * width + 4, top - 5, name, turn=-90) for j, name in enumerate(columns)]
    for i, j in np.argwhere(np.isfinite(values)):
        value, x, y = float(values[i, j]), left + j * width, top + i * cell
        strength = min(abs(value) / full, 1.0)
        if strength >= 0.004:
            name = " ".join(f"{value:.3g}: {rows[i] if rows else ''} {columns[j] if columns else ''}".split())
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{cell - 1:.1f}" '
                f'class="h{int(value < 0)}" fill-opacity="{strength:.2f}"><title>{escape(name)}</title></rect>'
            )
        if digits is not None:
            kind = "back" if strength > 0.6 else ""
            body.append(text(x + width / 2, y + cell / 2 + 4, f"{value:.{digits}f}", anchor="middle", classes=kind))
    body.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{C * width:.1f}" height="{R * cell:.1f}" class="line"/>')
    wide = max(left + C * width, 8 + len(title) * CHARACTER) + 8
    return document(wide, top + R * cell + 8, body, title or "heat map")


def bars(values: Sequence[float], labels: Sequence[str], title: str = "", *, width: float = 560, form: str = "") -> str:
    """One horizontal bar a value, with its label at the left and the value, by the format `form`, at the right."""
    assert len(values) == len(labels), (len(values), len(labels))
    form = form or ".3g"
    left = max((len(label) for label in labels), default=0) * CHARACTER + 12
    right = max((len(f"{value:{form}}") for value in values), default=0) * CHARACTER + 12
    width = max(width, left + right + 120, 8 + len(title) * CHARACTER)  # px; a bar has at least 120
    top, step = (28 if title else 8), 20
    full = max((abs(value) for value in values), default=0) or 1.0
    body = [text(4, 16, title, classes="bold")] if title else []
    for i, (value, label) in enumerate(zip(values, labels)):
        y, length = top + i * step, abs(value) / full * (width - left - right)
        body.append(text(left - 6, y + 14, label, anchor="end"))
        body.append(
            f'<rect x="{left:.1f}" y="{y + 2:.1f}" width="{length:.1f}" height="{step - 5}" class="h{int(value < 0)}"/>'
        )
        body.append(text(left + length + 6, y + 14, f"{value:{form}}"))
    return document(width, top + len(values) * step + 8, body, title or "bars")


def lines(
    series: Mapping[str, Sequence[float]],
    ticks: Sequence[str] = (),
    title: str = "",
    *,
    width: float = 560,
    height: float = 260,
    log: bool = False,
) -> str:
    """One line a series, all over 0, 1, 2, ... with `ticks` as names of these. log: a logarithmic vertical axis.

    At most five series have colours of their own. On a logarithmic axis all values must be above 0.
    """
    points = {name: np.asarray(values, np.float64) for name, values in series.items()}
    count = max((len(values) for values in points.values()), default=0)
    assert count and all(values.size for values in points.values()), "a chart needs at least one point a series"
    everything = np.concatenate(list(points.values()))
    marks = _marks(float(everything.min()), float(everything.max()), log)
    low, high = marks[0], marks[-1]
    left = max(len(f"{mark:g}") for mark in marks) * CHARACTER + 14
    legend = max(len(name) for name in points) * CHARACTER + 20
    below = max((len(tick) for tick in ticks), default=0) * CHARACTER + 14
    top, plot = (30 if title else 12), (width - left - legend, height)

    def place(i: float, value: float) -> tuple[float, float]:
        share = np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
        return left + plot[0] * (i / (count - 1) if count > 1 else 0.5), top + plot[1] * (1 - float(share))

    body = [text(4, 16, title, classes="bold")] if title else []
    for mark in marks:
        y = place(0, mark)[1]
        body.append(f'<path class="line" d="M{left:.1f} {y:.1f}h{plot[0]:.1f}"/>')
        body.append(text(left - 6, y + 4, f"{mark:g}", anchor="end", classes="faint"))
    level = below < plot[0] / count  # is there room for the names of the ticks side by side?
    for i, tick in enumerate(ticks):
        x, y = place(i, low)[0], top + plot[1] + 8
        if level:
            body.append(text(x, y + 10, tick, anchor="middle", classes="faint"))
        else:
            body.append(text(x + 4, y, tick, anchor="end", classes="faint", turn=-90))
    ends = sorted((place(len(values) - 1, values[-1])[1], n) for n, values in enumerate(points.values()))
    lowest = -np.inf
    for n, values in enumerate(points.values()):
        path = "L".join("{:.1f} {:.1f}".format(*place(i, value)) for i, value in enumerate(values))
        body.append(f'<path class="s{n % len(HUES)}" stroke-width="2" stroke-linejoin="round" d="M{path}"/>')
    for y, n in ends:  # names at the right end of their lines, 15 px apart at least
        lowest = max(y, lowest + 15)
        body.append(text(left + plot[0] + 8, lowest + 4, list(points)[n], classes=f"h{n % len(HUES)}"))
    return document(width, max(top + plot[1] + (30 if level else below), lowest + 12), body, title or "lines")


def _marks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers that enclose low and high: powers of ten, or steps of 1, 2 or 5 times one."""
    if log:
        assert low > 0, low
        first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
        return [10.0**n for n in range(first, max(last, first + 1) + 1)]
    spread = (high - low) or abs(high) or 1.0
    unit = 10 ** np.floor(np.log10(spread / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if spread / (unit * factor) <= 5)
    first, last = int(np.floor(low / step)), int(np.ceil(high / step))
    return [float(f"{n * step:.6g}") for n in range(first, max(last, first + 1) + 1)]
