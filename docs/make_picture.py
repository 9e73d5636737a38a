"""Draw docs/picture.svg: the whole machine on one picture, with the file of each step and the shapes of Llama 3 8B.

python docs/make_picture.py        writes the picture; tests/test_docs.py checks that it is up to date
"""

from html import escape
from pathlib import Path

PICTURE = Path(__file__).with_name("picture.svg")
WIDTH, HEIGHT = 1180, 640
PAPER, INK, GREY = "#fcfbf7", "#1d2430", "#5d6673"
FILE, STREAM, LOOP = "#0b63a5", "#d9822b", "#8a3ffc"
STEP, STATE, TEXT = "#eaf1f8", "#fdeed9", "#f1ecfb"  # what computes, what is kept, what people read
SANS, MONO = "Helvetica, Arial, 'DejaVu Sans', sans-serif", "Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def words(x: float, y: float, text: str, size: int = 13, colour: str = INK, more: str = "") -> str:
    """A line of text, its middle at x."""
    style = f'font-size="{size}" fill="{colour}" text-anchor="middle" {more}'.rstrip()
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>'


def box(x: float, y: float, width: float, title: str, *lines: str, file: str = "", fill: str = STEP) -> str:
    """A step: its title, then formulas and shapes, then its file."""
    height = 26 + 17 * len(lines) + (17 if file else 0)
    middle = x + width / 2
    out = [f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="7" fill="{fill}" stroke="{GREY}"/>']
    out.append(words(middle, y + 18, title, 14, INK, 'font-weight="bold"'))
    for i, line in enumerate(lines):
        out.append(words(middle, y + 35 + 17 * i, line, 12, INK, f'font-family="{MONO}"'))
    if file:
        out.append(words(middle, y + height - 8, file, 12, FILE))
    return "\n".join(out)


def arrow(*points: tuple[float, float], colour: str = INK, width: float = 1.6, dashed: bool = False) -> str:
    """A line through the points, with a head at the last one."""
    path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    head = {INK: "ink", STREAM: "stream", LOOP: "loop"}[colour]
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes} marker-end="url(#{head})"/>'
    )


def head(name: str, colour: str, size: float) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size:g}" markerHeight="{size:g}" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 L10 5 L0 10 Z" fill="{colour}"/></marker>'
    )


def plus(x: float, y: float) -> str:
    """Where a block's output is added to the residual stream."""
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="12" fill="{PAPER}" stroke="{STREAM}" stroke-width="2.5"/>\n'
        f'<path d="M{x - 6:g} {y:g} H{x + 6:g} M{x:g} {y - 6:g} V{y + 6:g}" stroke="{STREAM}" stroke-width="2.5"/>'
    )


def text_to_rows() -> list[str]:
    """The left column: from text to the first value of the residual stream."""
    return [
        box(22, 84, 190, "text", '"What is RoPE?"', fill=TEXT),
        arrow((117, 127), (117, 160)),
        box(22, 162, 190, "chat format", "roles, <|eot_id|>", file="chat.py"),
        arrow((117, 222), (117, 255)),
        box(
            22,
            257,
            190,
            "tokenizer",
            "text -> chunks -> merges",
            "T ids below 128,256",
            file="byte_pair.py, tokenizer.py",
        ),
        arrow((117, 334), (117, 429)),
        box(22, 431, 190, "embedding", "(128256, 4096)", "one row for each token", file="model/transformer.py"),
    ]


def layer() -> list[str]:
    """The middle: one layer around the residual stream."""
    out = [
        f'<rect x="254" y="84" width="648" height="466" rx="12" fill="none" stroke="{GREY}" stroke-dasharray="3 4"/>',
        words(578, 106, "one layer, 32 times", 15, INK, 'font-weight="bold"'),
        words(578, 124, "model/transformer.py, model/weights.py", 12, FILE),
        words(446, 150, "attention block", 13, GREY),
        words(766, 150, "feed-forward block", 13, GREY),
        arrow((117, 508), (117, 575), (1034, 575), (1034, 549), colour=STREAM, width=4),
        words(578, 604, "residual stream: x (T, 4096), to which every block adds", 13, STREAM, 'font-weight="bold"'),
    ]
    out += [  # attention: up on the left, down on the right
        arrow((345, 575), (345, 522)),
        box(270, 477, 150, "RMSNorm", file="model/rms_norm.py"),
        arrow((345, 477), (345, 447)),
        box(270, 368, 150, "queries, keys, values", "q (T, 32, 128)", "k, v (T, 8, 128)", file="model/linear.py"),
        arrow((345, 368), (345, 329)),
        box(270, 250, 150, "RoPE", "turns q and k", "by their position", file="model/rope.py"),
        arrow((345, 250), (345, 208), (444, 208)),
        words(392, 201, "k, v", 12, INK, f'font-family="{MONO}"'),
        box(446, 168, 176, "KV cache", "k, v (8, length, 128)", file="model/kv_cache.py", fill=STATE),
        arrow((534, 228), (534, 268)),
        arrow((420, 309), (444, 309)),
        words(432, 301, "q", 12, INK, f'font-family="{MONO}"'),
        box(446, 270, 176, "attention", "softmax(q·k / √128) v", "4 queries share a key", file="model/attention.py"),
        arrow((534, 347), (534, 395)),
        box(446, 397, 176, "output projection", "wo (4096, 4096)", file="model/linear.py"),
        arrow((534, 457), (534, 561)),
        plus(534, 575),
    ]
    out += [  # feed-forward: the same way round
        arrow((709, 575), (709, 522)),
        box(642, 477, 134, "RMSNorm", file="model/rms_norm.py"),
        arrow((709, 477), (709, 438)),
        box(642, 376, 134, "gate, up", "(T, 14336) each", file="model/linear.py"),
        arrow((709, 376), (709, 330)),
        box(642, 270, 248, "SwiGLU", "silu(gate) * up  (T, 14336)", file="model/feed_forward.py"),
        arrow((839, 330), (839, 395)),
        box(788, 397, 102, "down", "w2", file="model/linear.py"),
        arrow((839, 457), (839, 561)),
        plus(839, 575),
    ]
    return out


def rows_to_text() -> list[str]:
    """The right column: from the last row to text, and the way back for the next token."""
    return [
        box(930, 486, 208, "RMSNorm", "the last row alone", file="model/rms_norm.py"),
        arrow((1034, 486), (1034, 447)),
        box(930, 385, 208, "logits", "(128256,)", file="model/linear.py"),
        arrow((1034, 385), (1034, 346)),
        box(
            930,
            250,
            208,
            "sampler",
            "penalties, temperature",
            "top_k, top_p, min_p",
            "one draw",
            file="sampler.py, philox.py",
        ),
        arrow((1034, 250), (1034, 224)),
        box(930, 162, 208, "text stream", "token -> characters", file="text.py"),
        arrow((1034, 162), (1034, 129)),
        box(930, 84, 208, "text", '"RoPE, rotary ..."', fill=TEXT),
        arrow(
            (1138, 298), (1160, 298), (1160, 56), (233, 56), (233, 470), (214, 470), colour=LOOP, width=2.2, dashed=True
        ),
        words(
            620,
            47,
            "engine.py: the drawn token is the next step's only new row; the KV cache holds the others",
            13,
            LOOP,
        ),
    ]


def picture() -> str:
    markers = head("ink", INK, 9) + head("stream", STREAM, 15) + head("loop", LOOP, 11)
    title = "Llama 3: from text to tokens, through the layers, to the next token and to text"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{SANS}" role="img">',
        f"<title>{title}</title>",
        f"<defs>{markers}</defs>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" fill="{PAPER}" stroke="{GREY}"/>',
        *text_to_rows(),
        *layer(),
        *rows_to_text(),
        words(
            WIDTH / 2,
            627,
            "T: tokens of this step. length: tokens of the sequence so far. Shapes of Llama 3 8B.",
            12,
            GREY,
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
