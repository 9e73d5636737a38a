"""The page of predictions: results/gpu-predictions.md, made from the model of gpu_model.py.

python benchmarks/gpu_predictions.py             prints the page
python benchmarks/gpu_predictions.py --write     writes it
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import gpu_assumptions as given  # the files beside this one
from gpu_assumptions import AFTER, BEFORE, H100, H200, TILES_64, TILES_128, WGMMA, Card, Code, PromptKernel
from gpu_floor import LLAMA3_8B, decode_bytes, weights_read
from gpu_model import decode, launches, prefill

from llama3.cuda.linear import MAX_FEW

PAGE = Path(__file__).parent / "results" / "gpu-predictions.md"
STEPS = ((1, 128), (1, 2048), (1, 8192), (8, 1024), (32, 1024), (64, 1024))
PROMPTS = (128, 512, 2048, 8192)
CARDS = (H100, H200)
CHANGES = {  # what it is called, and the code without it
    "few rows: weights are asked for before the wait, all at once": replace(AFTER, few_early=False),
    "many rows: cuBLAS in the graph": replace(AFTER, own_rows=None),
    "on an H200, cuBLAS from 17 rows on, not from 33": replace(AFTER, own_rows=lambda _: MAX_FEW),
    "the next step is launched before the tokens are read": replace(AFTER, ahead=False, python_us=BEFORE.python_us),
    "a greedy draw is two launches, not 13": replace(AFTER, sampler_launches=BEFORE.sampler_launches),
    "kernels overlap (dependent launch; not new)": replace(AFTER, overlap=False),
    "attention prefetches keys and values, and its loops end early": replace(AFTER, attention_early=False),
}
MATMUL = 790e12  # FLOP a second of a large product, for a short time: what the report measures
SHARES = (((1, 128), 0.93), ((1, 8192), 0.91))  # (batch, context), the least share of reading
GAINS = ((8, 6.5), (32, 20), (64, 34))
KINDS = {"bf16": None, "int8": "Int8", "float8_e4m3": "Fp8", "int4, groups of 128": "Int4"}  # of the matrices


def page() -> str:
    one = launches(1, 512)
    text = (Path(__file__).parent / "gpu_predictions_text.md").read_text(encoding="utf-8")
    return text.format(
        weights=f"{decode_bytes(LLAMA3_8B, 1, 0) / 1e9:.2f} GB",
        launches=len(one),
        sampler=sum(launch.name.startswith("sampler") for launch in one),
        steps="\n".join(step_table(card) for card in CARDS),
        l2=l2_table(),
        quantised="\n".join(quantised_table(card) for card in CARDS),
        changes=change_table(),
        prompts=prompt_table(),
        ceilings=ceiling_table(),
        targets=target_table(),
        assumptions=table(["", "H100", "H200", "source"], given.SOURCES).removesuffix("\n"),
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ms(seconds: float, digits: int = 2) -> str:
    return f"{1e3 * seconds:.{digits}f}"


def step_name(batch: int, context: int) -> str:
    return f"batch {batch}, context {context:,}"


def gained(card: Card, batch: int) -> float:
    """Tokens a second, relative to one sequence."""
    return batch * decode(card, AFTER, 1, 1024).seconds / decode(card, AFTER, batch, 1024).seconds


def step_table(card: Card) -> str:
    def row(batch: int, context: int) -> list[str]:
        before, step = decode(card, BEFORE, batch, context), decode(card, AFTER, batch, context)
        parts = (step.reading, step.products, step.attention)
        return [
            step_name(batch, context),
            f"{step.bytes / 1e9:.2f}",
            *map(ms, parts),
            f"{step.launches}: {ms(step.gaps)}",
            ms(step.small),
            ms(step.host, 3),
            f"**{ms(step.seconds)}**",
            f"{batch / step.seconds:,.0f}",
            f"{step.share:.1%}",
            f"{ms(before.seconds)}, {before.share:.0%}",
            "not measured",
        ]

    head = [card.name, "GB", "reading", "products", "attention", "launches and gaps", "small kernels", "host"]
    head += ["predicted", "tokens/s", "of reading", "before", "measured"]
    return table(head, (row(*step) for step in STEPS))


def l2_table() -> str:
    """GB that products take from the L2 cache in a step, by our kernels and by cuBLAS, and how long that takes."""
    rows = []
    for batch in (1, 8, 32, 64):
        own, chosen = (decode(H200, code, batch, 1024) for code in (replace(AFTER, own_rows=None), AFTER))
        rows.append(
            [
                f"{batch}",
                f"{own.l2_bytes / 1e9:.1f}",
                ms(own.l2_bytes / H200.l2),
                *(ms(weights_read(LLAMA3_8B) / card.read) for card in CARDS),
                "cuBLAS" if chosen.l2_bytes != own.l2_bytes else "ours",
            ]
        )
    head = ["rows", "GB through L2 by our kernels", "ms at 6 TB/s", "ms of reading, H100", "H200", "chosen on an H200"]
    return table(head, rows)


def quantised_table(card: Card) -> str:
    """Steps with matrices of each kind: reading, the prediction, and how many times as fast as bf16 that is."""
    batches = (1, 8, 32, 64)

    def cell(kind: str | None, batch: int) -> str:
        step, plain = (decode(card, AFTER, batch, 1024, k) for k in (kind, None))
        return f"{ms(step.reading)}, **{ms(step.seconds)}**, {plain.seconds / step.seconds:.2f} x"

    rows = [
        [
            name,
            f"{weights_read(LLAMA3_8B, kind) / 1e9:.2f}",
            ms(weights_read(LLAMA3_8B, kind) / card.read),
            *(cell(kind, batch) for batch in batches),
            "not measured",
        ]
        for name, kind in KINDS.items()
    ]
    head = [f"matrices, {card.name}", "GB", "ms of reading", *(f"batch {batch}" for batch in batches), "measured"]
    return table(head, rows)


def change_table() -> str:
    steps = ((1, 128), (1, 8192), (8, 1024), (32, 1024), (64, 1024))

    def longer(card: Card, without: Code, batch: int, context: int) -> str:
        return ms(decode(card, without, batch, context).seconds - decode(card, AFTER, batch, context).seconds)

    rows = [
        [name, *(" / ".join(longer(card, code, *step) for card in CARDS) for step in steps), "not measured"]
        for name, code in CHANGES.items()
    ]
    small, large = (replace(AFTER, prompt=kernel) for kernel in (TILES_64, TILES_128))
    prompts = [
        [name, *(ms(prefill(card, slow, 8192).seconds - prefill(card, fast, 8192).seconds, 0) for card in CARDS)]
        for name, slow, fast in (
            ("128 rows a block, 32 a warp", small, large),
            ("`wgmma` instead of `mma.sync`", large, AFTER),
        )
    ]
    head = ["decoding: ms a step", *(step_name(*step) for step in steps), "measured"]
    return table(head, rows) + "\n" + table(["attention of a prompt of 8,192: ms", "H100", "H200"], prompts)


def prompt_table() -> str:
    def cells(card: Card, T: int) -> str:
        prompt = prefill(card, AFTER, T)
        parts = (prompt.products, prompt.attention, prompt.rest, prompt.host)
        return f"**{ms(prompt.seconds, 1)}** = " + " + ".join(ms(part, 1) for part in parts)

    def row(T: int) -> list[str]:
        prompt = prefill(H200, AFTER, T)
        before = ms(prefill(H200, BEFORE, T).seconds, 1)
        share = f"{prompt.flops / prompt.seconds / MATMUL:.0%}"
        both = [cells(card, T) for card in CARDS]
        return [
            f"{T:,}",
            f"{prompt.flops / 1e12:.1f}",
            f"{prompt.launches}",
            *both,
            share,
            before,
            "not measured",
        ]

    head = ["tokens", "TFLOP", "launches", "H100, ms", "H200, ms", "of 790 TFLOP/s", "H200 before"]
    return table([*head, "measured"], map(row, PROMPTS))


def ceiling_table() -> str:
    def row(kernel: PromptKernel) -> list[str]:
        rates = [*kernel.ceilings(H200).values(), kernel.rate(H200)]
        return [kernel.name, *(f"{rate / 1e12:.0f}" for rate in rates)]

    return table(["", *TILES_64.ceilings(H200), "predicted"], map(row, (TILES_64, TILES_128, WGMMA)))


def target_table() -> str:
    def row(name: str, least: float, form: str, value: Callable[[Card], float]) -> list[str]:
        found = [value(card) for card in CARDS]
        verdicts = (form.format(v) + (": holds" if v >= least else ": does not hold") for v in found)
        return [name, form.format(least), *verdicts]

    def matmul_share(card: Card) -> float:
        prompt = prefill(card, AFTER, 8192)
        return prompt.flops / prompt.seconds / MATMUL

    rows = [
        row(
            f"{step_name(*step)}: share of reading",
            least,
            "{:.1%}",
            lambda card, step=step: decode(card, AFTER, *step).share,
        )
        for step, least in SHARES
    ]
    rows += [
        row(f"batch {batch}: times the tokens of one", least, "{:.1f}", lambda card, batch=batch: gained(card, batch))
        for batch, least in GAINS
    ]
    rows += [
        row("attention of 8,192 by `mma.sync`: TFLOP/s", 300, "{:.0f}", lambda card: TILES_128.rate(card) / 1e12),
        row("attention of 8,192 by `wgmma`: TFLOP/s", 430, "{:.0f}", lambda card: WGMMA.rate(card) / 1e12),
        row("prefill of 8,192: share of 790 TFLOP/s", 0.6, "{:.0%}", matmul_share),
    ]
    return table(["target", "at least", "H100", "H200"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page instead of printing it")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
