"""The targets of the project, each with the figure that gpu.py has measured for it."""

from typing import Any

from gpu_decoders import DECODERS  # the files beside this one
from gpu_parts import ALL_PARAMETERS
from gpu_start import FIRST_CACHED, LOADING, UPLOAD

NAN = float("nan")


def verdicts(report_rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each target. A missing figure counts as not measured."""
    lines = []
    for name, value, target in targets(report_rows):
        verdict = "not measured" if value != value else "holds" if value >= target else "does not hold"
        lines.append(f"{name:58} {value:10.3f}   at least {target:.3f}: {verdict}")
    return lines


def targets(rows: dict[str, dict[str, Any]]) -> list[tuple[str, float, float]]:
    """(target, measured figure or nan, least figure)"""
    ms = {name: row["ms"] for name, row in rows.items() if "ms" in row}

    def decode(batch: int, context: int, name: str) -> str:
        return f"decode, batch {batch}, context {context}: {name}"

    def figure(name: str, key: str) -> float:
        return rows.get(name, {}).get(key, NAN)

    def faster(ours: str, others: list[str]) -> float:
        """The speed relative to the fastest of the others. The compiled baseline must be there, and in CUDA graphs."""
        compiled = [rows.get(name, {}) for name in others if name.endswith("fast_compile")]
        if any("ms" not in row or row.get("cudagraph_skips") or row.get("cudagraphs") == 0 for row in compiled):
            return NAN
        return min([ms[name] for name in others if name in ms], default=NAN) / ms.get(ours, NAN)

    found = []
    for context, share in ((128, 0.90), (8192, 0.87)):
        ours, others = decode(1, context, "ours"), [decode(1, context, name) for name in DECODERS]
        reading = figure(ours, "share_of_read_bandwidth")
        found.append((f"decode at {context}: share of reading", reading, share))
        # Nothing can be 1.10 times as fast as a baseline that is near the limit itself.
        enough = reading / 0.94 if reading >= 0.94 else faster(ours, others) / 1.10
        found.append((f"decode at {context}: times the fastest other / 1.10, or share / 0.94", enough, 1))
    for batch, context in ((1, 128), (64, 1024)):
        busy = figure(decode(batch, context, "ours"), "busy")
        found.append((f"batch {batch} at {context}: share of a step in which the GPU works", busy, 0.995))
    for batch, gain in ((8, 6.5), (32, 20), (64, 34)):
        gained = batch * faster(decode(batch, 1024, "ours"), [decode(1, 1024, "ours")])
        found.append((f"batch {batch}: times the tokens of one", gained, gain))
    prompt, greedy = "prefill of 8192: ours", decode(1, 128, "ours")
    others = ["prefill of 8192: fast_compile", *(name for name in ms if name.startswith("prefill of 8192: "))]
    beyond = ms.get(FIRST_CACHED, NAN) - ms.get(LOADING, NAN)
    return [
        *found,
        ("prefill of 8192: times the fastest other", faster(prompt, [name for name in others if name != prompt]), 0.87),
        ("prefill of 8192: share of multiplying", figure(prompt, "share_of_matmul_rate"), 0.60),
        ("attention of 8192: TFLOP/s", figure("attention of 8192: ours", "TFLOP_s"), 300),
        ("greedy: share of a step with every parameter set", 1 / faster(greedy, [greedy + ALL_PARAMETERS]), 0.98),
        ("weights to the device: share of a pinned copy", figure(UPLOAD, "share_of_pinned_rate"), 0.60),
        ("first token: 3 s / (time without loading weights)", 3000 / beyond, 1),
    ]
