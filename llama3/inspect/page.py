"""An `Inspection` as one HTML file that loads nothing, and as the JSON object that its script draws.

Attention weights are stored as bytes, 255 for a weight of 1, the lower triangle of each head row by row. So a page of
200 tokens of a small model takes about half a megabyte. Of a model with many heads, the page holds as many as
`DATA_BYTES` leave room for: those asked for, then those that look least at the first token.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama3.inspect.run import Inspection
from llama3.inspect.steps import STAGES
from llama3.inspect.without import Part, name_of
from llama3.resources import resource

DATA_BYTES = 2_900_000  # with its script and style sheet, a page then has at most 3 MB
SAME = "the same answer"  # instead of its text; inspect.js knows these words
NUMBERS = 4  # digits of a probability
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(seen: Inspection, heads: Sequence[Part] = ()) -> str:
    """The page. heads: parts (layer, head) that it must show; the first of them is the one shown at the beginning."""
    text = json.dumps(page_data(seen, heads), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "replace").decode().replace("<", "\\u003c")  # "</script>" in a token would end it
    html, css, js = (static(f"inspect.{kind}") for kind in ("html", "css", "js"))
    base = resource("static", "base.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<title>Inside the model</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{base}{css}</style>\n</head>\n<body>\n{html}"
        f'<script type="application/json" id="data">{text}</script>\n<script>\n{js}</script>\n</body>\n</html>\n'
    )


def static(name: str) -> str:
    return resource("inspect", "static", name).read_text(encoding="utf-8")


def page_data(seen: Inspection, heads: Sequence[Part] = ()) -> dict[str, Any]:
    """What inspect.js draws."""
    data = all_but_attention(seen, heads)
    room = DATA_BYTES - len(json.dumps(data))
    shown = chosen_heads(seen, heads, room * 3 // 4)  # base64 adds a third
    rows, columns = np.tril_indices(len(seen.tokens))
    weights = [np.rint(seen.attention[layer, head][rows, columns] * 255).astype(np.uint8) for layer, head in shown]
    return data | {"heads": shown, "attention": encoded(np.concatenate(weights))}


def all_but_attention(seen: Inspection, heads: Sequence[Part]) -> dict[str, Any]:
    """The data without attention weights, which take as much room as is left."""
    setting = {name: getattr(seen.params, name, None) for name in STAGES}
    return {
        "model": seen.model,
        "layers": seen.config.n_layers,
        "headCount": seen.config.n_layers * seen.config.n_heads,
        "first": list(heads[0]) if heads else strongest(seen),
        "tokens": [[t.id, t.text, t.bytes.hex(" "), int(t.special)] for t in seen.tokens],
        "prompt": seen.n_prompt,
        "answer": seen.answer.text,
        "seed": str(seen.answer.seed),  # a number of JavaScript holds 53 bits
        "vocabulary": seen.vocabulary,
        "stages": [[name, "" if setting[name] is None else f"{setting[name]:g}"] for name in STAGES],
        "steps": [rounded(vars(step)) for step in seen.steps],
        "lens": {
            "points": seen.lens.points,
            "n": seen.lens.tokens.shape[2],
            "tokens": encoded(seen.lens.tokens.astype("<u4")),
            "next": encoded(np.rint(np.nan_to_num(seen.lens.of_next) * 255).astype(np.uint8)),
            "probabilities": encoded(np.rint(seen.lens.probabilities * 65535).astype("<u2")),
        },
        "norms": [[float(f"{value:.3g}") for value in row] for row in seen.norms],
        "ablations": [
            [
                ", ".join(map(name_of, a.parts)),
                str(a.same),
                f"{round(a.loss, 2) + 0.0:+.2f}",  # no -0.00
                SAME if a.text == seen.answer.text else a.text,
            ]
            for a in seen.ablations
        ],
        "operations": [
            [o.name, *(f"{x:.3g}" for x in (o.seconds * 1e3, o.bytes / 1e6, o.floor * 1e3, o.seconds / o.floor))]
            for o in seen.operations
        ],
    }


def chosen_heads(seen: Inspection, heads: Sequence[Part], room: int) -> list[list[int]]:
    """The heads whose weights fit into `room` bytes, at least one, in the model's order."""
    L, H, T, _ = seen.attention.shape
    fits = max(room // (T * (T + 1) // 2), 1)
    if fits >= L * H:
        return [[layer, head] for layer in range(L) for head in range(H)]
    sink = seen.attention[:, :, :, 0].mean(axis=2)  # (L, H): the share of the first token
    for layer, head in heads:
        sink[layer, int(head)] = -1
    kept = np.argsort(sink.ravel(), kind="stable")[:fits]
    return [[int(i) // H, int(i) % H] for i in np.sort(kept)]


def strongest(seen: Inspection) -> list[int]:
    """The head with the highest weight on a token other than the first, at the last position of the prompt."""
    at = seen.n_prompt - 1
    aside = seen.attention[:, :, at, min(1, at) : at + 1].max(axis=2)  # (n_layers, n_heads)
    return [int(i) for i in np.unravel_index(aside.argmax(), aside.shape)]


def rounded(value: Any) -> Any:
    """The same value with its numbers rounded, so that they take fewer bytes."""
    if isinstance(value, float):
        return round(value, NUMBERS)
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {name: rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
