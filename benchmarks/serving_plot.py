"""Draws what serving.py has measured.

python benchmarks/serving_plot.py FILE.json PICTURE.svg        (or PICTURE.png; needs matplotlib)
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SHADES = {"p50": "#08519c", "p95": "#4292c6", "p99": "#9ecae1"}
READING = "#e6550d"


def matplotlib_or_exit() -> None:
    if find_spec("matplotlib") is None:
        sys.exit("serving_plot: matplotlib is missing, which draws the picture: pip install matplotlib")


def draw(result: dict[str, Any], path: Path) -> None:
    """Six panels: the clients above; the arrivals and the long prompt below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "llama3"}
    )
    figure, ((speed, first, between), (late, pauses, long)) = plt.subplots(2, 3, figsize=(13, 7.2))
    processor = result["machine"]["processor"]
    linear = f"linear {result['linear']}"
    figure.suptitle(
        f"{result['model']}, {linear}, {result['slots']} slots; {processor}, {result['machine']['cores']} cores"
    )

    levels = result["clients"]
    clients = [level["clients"] for level in levels]
    speed.plot(clients, [level["tokens_per_s"] for level in levels], "o-", color=SHADES["p50"])
    for level in (levels[0], max(levels, key=lambda level: level["tokens_per_s"])):
        at = (level["clients"], level["tokens_per_s"])
        speed.annotate(f"{at[1]:.3g}", at, (0, 6), textcoords="offset points", ha="center")
    speed.set(
        title="clients: all together",
        ylabel="tokens a second",
        ylim=(0, 1.15 * max(level["tokens_per_s"] for level in levels)),
    )
    percentiles(first, clients, levels, "first_token_ms")
    percentiles(between, clients, levels, "between_tokens_ms")
    for axes in (speed, first, between):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(n) for n in clients])
        axes.set_xlabel("clients")
    first.set(title="clients: until the first token", ylabel="milliseconds")
    between.set(title="clients: between two tokens", ylabel="milliseconds")

    levels = result["arrivals"]
    rates = [level["arrivals_per_s"] for level in levels]
    percentiles(late, rates, levels, "first_token_ms")
    percentiles(pauses, rates, levels, "between_tokens_ms")
    for axes in (late, pauses):
        axes.set_xticks(rates, [f"{level['arrivals_per_s']:.3g}\n{100 * level['load']:.0f} %" for level in levels])
        axes.set_xlabel("requests a second; part of the clients' best")
    late.set(title="random arrivals: until the first token", ylabel="milliseconds")
    pauses.set(title="random arrivals: between two tokens", ylabel="milliseconds")
    long_prompt(long, result["long_prompt"])
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(path)


def percentiles(axes: Any, x: list[float], levels: list[dict[str, Any]], name: str) -> None:
    """Three lines in milliseconds, each with its name at its right end."""
    from matplotlib.ticker import LogLocator, NullLocator

    lowest = min(level[name]["p50"] for level in levels)
    highest = max(level[name]["p99"] for level in levels)
    decades = np.log10(4 * highest / lowest)
    ends: list[float] = []
    for p, color in SHADES.items():
        y = [level[name][p] for level in levels]
        axes.plot(x, y, "o-", color=color, markersize=4)
        ends.append(
            max(np.log10(y[-1]), ends[-1] + 0.045 * decades if ends else -np.inf)
        )  # so that the names do not overlap
        axes.annotate(p, (x[-1], 10 ** ends[-1]), (8, 0), textcoords="offset points", va="center", color=color)
    axes.set_yscale("log")
    axes.set_ylim(lowest / 2, highest * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#eeeeee")


def long_prompt(axes: Any, figures: dict[str, Any]) -> None:
    """The tokens of one running answer: when each came, and how long after the one before. p95 is over all 8."""
    seconds, gaps = zip(*figures["one_answer_s_ms"])
    begin, end = figures["sent_s"], figures["sent_s"] + figures["prompt_took_s"]
    axes.axvspan(begin, end, color=READING, alpha=0.12)
    axes.plot(seconds, gaps, ".", color=SHADES["p50"], markersize=5)
    top = 1.25 * max(gaps)
    axes.set_ylim(0, top)
    spans = {"before": (seconds[0], begin), "while": (begin, end), "after": (end, seconds[-1])}
    for name, (left, right) in spans.items():
        p95 = figures[f"{name}_ms"]["p95"]
        axes.plot((left, right), (p95, p95), color=READING, linewidth=1.5)
        axes.text((left + right) / 2, top, f"p95\n{p95:.3g} ms", color=READING, ha="center", va="top")
    axes.set(
        title="8 answers while a prompt of 1,024 is read (shaded)",
        xlabel="seconds",
        ylabel="milliseconds between two tokens",
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    matplotlib_or_exit()
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
