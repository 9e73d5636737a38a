"""Draw docs/ranks.svg: one layer of a model on two ranks, and which part of each matrix a rank holds.

python -m docs.make_ranks_picture        writes the picture; tests/tensor_parallel/test_picture.py checks it
"""

from pathlib import Path

PICTURE = Path(__file__).with_name("ranks.svg")
WIDTH, HEIGHT, SIDE = 960, 330, 64
LANES = ((110, "#2b6cb0", "rank 0"), (240, "#c05621", "rank 1"))  # y of its middle, colour, name
GREY, INK = "#e2e8f0", "#1a202c"


def text(x: float, y: float, words: str, size: int = 13, colour: str = INK, weight: str = "normal") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="middle"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.4" marker-end="url(#tip)"/>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{INK}"/>'


def matrix(x: float, lane: int, name: str, by_rows: bool) -> list[str]:
    """A whole matrix around x, with this rank's half of it in the rank's colour, and its name in that half."""
    y, colour, _ = LANES[lane]
    left, top, half = x - SIDE / 2, y - SIDE / 2, SIDE / 2
    if by_rows:
        part = (left, top + lane * half, SIDE, half)
        middle = (x, top + lane * half + half / 2 + 5)
    else:
        part = (left + lane * half, top, half, SIDE)
        middle = (left + lane * half + half / 2, y + 5)
    return [box(left, top, SIDE, SIDE, GREY), box(*part, colour), text(*middle, name, 13, "white", "bold")]


def residual(x: float, label: str) -> list[str]:
    """The residual stream, which both ranks have whole."""
    out = [text(x, 32, "x", 15, INK, "bold"), text(x, 50, label, 11)]
    return out + [box(x - 7, y - SIDE / 2, 14, SIDE, colour) for y, colour, _ in LANES]


def pair(x: float, first: str, between: tuple[str, str], second: str) -> list[str]:
    """The two matrices of a pair at x and x + 220, what lies between them, and the sum behind them."""
    out = []
    for lane, (y, _, _) in enumerate(LANES):
        out += matrix(x, lane, first, by_rows=True) + matrix(x + 220, lane, second, by_rows=False)
        out.append(f'<rect x="{x + 66}" y="{y - 22}" width="88" height="44" rx="8" fill="white" stroke="{INK}"/>')
        out += [
            text(x + 110, y - 2, between[0], 12),
            text(x + 110, y + 13, between[1].format(("first", "other")[lane]), 11),
        ]
        out += [arrow(x + 34, y, x + 63, y), arrow(x + 156, y, x + 185, y)]
    middle = (LANES[0][0] + LANES[1][0]) / 2
    sum_x = x + 305
    out.append(f'<circle cx="{sum_x}" cy="{middle}" r="17" fill="white" stroke="{INK}" stroke-width="1.6"/>')
    out.append(text(sum_x, middle + 7, "+", 22, INK, "bold"))
    for y, _, _ in LANES:
        sign = 1 if y < middle else -1
        out.append(arrow(x + 254, y, sum_x - 11, middle - sign * 15))
        out.append(arrow(sum_x + 12, middle - sign * 13, x + 332, y + sign * 4))
    return out


def picture() -> str:
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for y, colour, name in LANES:
        out.append(text(42, y + 5, name, 14, colour, "bold"))
        out += [arrow(101, y, 137, y), arrow(522, y, 557, y)]
    out += residual(92, "whole in each rank") + residual(513, "the sum is added to it") + residual(935, "")
    out += pair(172, "q k v", ("attention", "{0} heads"), "wo")
    out += pair(593, "w1 w3", ("SwiGLU", "{0} channels"), "w2")
    out.append(text(282, 310, "cut by rows, then by columns: nothing to exchange in between", 12))
    out.append(text(477, 285, "all-reduce", 12, INK, "bold"))
    out.append(text(898, 285, "all-reduce", 12, INK, "bold"))
    out.append(text(703, 310, "the same for the feed-forward network", 12))
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
