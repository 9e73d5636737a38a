"""The rows of gpu.py in their order, the most important first: what each measures, and about how long that takes."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import gpu_decoders  # the files beside this one
import gpu_start
import gpu_torch
from gpu_fast import random_model
from gpu_floor import attention_flops, decode_bytes, prefill_flops, shapes
from gpu_ours import FULL, Ours
from gpu_report import Figure, Row
from gpu_timing import mean_context
from torch import Tensor

from llama3.config import ModelConfig
from llama3.cuda.device import Device

PARTS = ("first", "prompt", "batches", "products", "quantised", "prompts", "others", "start")
ALL_PARAMETERS = ", every parameter set"
SECONDS = {"ours": 20, "compiled": 120, "other": 30}  # guesses for a row; what is not started in time waits


class Sides:
    """The model as torch runs it and as this project runs it, in the same memory. It is made when it is first used."""

    def __init__(self, config: ModelConfig, device: Device, torch_device: str):
        self.config, self.device, self.torch_device = config, device, torch_device

    @cached_property
    def model(self) -> Any:
        return random_model(self.config, self.torch_device)

    @cached_property
    def ours(self) -> Ours:
        return Ours(self.device, self.config, self.model)

    def with_codes(self, kind: str) -> Ours:
        return Ours(self.device, self.config, self.model, kind)


def seconds_for(name: str) -> float:
    return SECONDS["compiled" if name.endswith("compile") else "ours" if name == "ours" else "other"]


def decode(sides: Sides, name: str, batch: int, context: int, full: bool = False) -> Row:
    c = sides.config

    def measure() -> Any:
        if name != "ours":
            return gpu_decoders.decode(name, sides.model, c, batch, context)
        return sides.ours.decode(batch, context, FULL) if full else sides.ours.decode(batch, context)

    figure = Figure(tokens=batch, read=decode_bytes(c, batch, mean_context(context, c.max_seq_len)))
    title = f"decode, batch {batch}, context {context}: {name}{ALL_PARAMETERS if full else ''}"
    return Row(title, measure, figure, seconds_for(name))


def prefill(sides: Sides, T: int) -> Iterator[Row]:
    c, figure = sides.config, Figure(tokens=T, flops=prefill_flops(sides.config, T))
    yield Row(f"prefill of {T}: ours", lambda: sides.ours.prefill(T), figure, SECONDS["ours"])
    for name in gpu_torch.PREFILLS:
        measure = lambda name=name: gpu_torch.prefill(name, sides.model, c, T)  # noqa: E731
        yield Row(f"prefill of {T}: {name}", measure, figure, seconds_for(name))


def first(sides: Sides) -> Iterator[Row]:
    for context in (128, 8192):
        for name in ("ours", "fast_compile"):
            yield decode(sides, name, 1, context)
    yield decode(sides, "ours", 1, 128, full=True)


def prompt(sides: Sides) -> Iterator[Row]:
    c, T = sides.config, 8192
    yield from prefill(sides, T)
    figure = Figure(flops=attention_flops(c, T))
    yield Row(f"attention of {T}: ours", lambda: sides.ours.attention(T), figure, SECONDS["ours"])
    for name in gpu_torch.BACKENDS:
        measure = lambda name=name: gpu_torch.attention(name, c, T, sides.torch_device)  # noqa: E731
        yield Row(f"attention of {T}: {name}", measure, figure, SECONDS["other"])
    figure = Figure(tokens=T, flops=prefill_flops(c, T))
    for piece in (512, 1024, 8192):  # the engine reads 2,048 prompt rows a step, or 512 while other requests decode
        measure = lambda piece=piece: sides.ours.prefill(T, piece)  # noqa: E731
        yield Row(f"in pieces of {piece}, prefill of {T}: ours", measure, figure, SECONDS["ours"])


def batches(sides: Sides) -> Iterator[Row]:
    for batch in (1, 64, 8, 32):
        yield decode(sides, "ours", batch, 1024)
    yield decode(sides, "fast_compile", 64, 1024)


def products(sides: Sides) -> Iterator[Row]:
    for name, (n_out, width) in shapes(sides.config).items():
        figure = Figure(read=2 * n_out * width)
        for library, of in (("ours", lambda: sides.ours.product), ("cuBLAS", lambda: gpu_torch.product)):
            run = lambda name=name, of=of: of()(matrices(sides, name))  # noqa: E731
            yield Row(f"one row times {name}: {library}", run, figure, 5)


def matrices(sides: Sides, name: str) -> list[Tensor]:
    """As many as the model has layers, the same for both sides."""
    layers = sides.model.model.layers
    return {
        "qkv": [qkv for qkv, _ in sides.model.joined],
        "o": [layer.self_attn.o_proj.weight for layer in layers],
        "gate_up": [gate_up for _, gate_up in sides.model.joined],
        "down": [layer.mlp.down_proj.weight for layer in layers],
        "head": [sides.model.lm_head.weight] * len(layers),  # it is larger than any cache, so it is read each time
    }[name]


def quantised(sides: Sides) -> Iterator[Row]:
    """Matrices of 8 and 4 bits. The model is made anew for each row, so that only one is in memory beside the bf16."""
    c, T = sides.config, 8192
    steps = [(kind, 1, 128) for kind in ("Int8", "Int4", "Fp8")]
    for kind, batch, context in (*steps, *((kind, batch, 1024) for batch in (8, 32, 64) for kind in ("Int8", "Int4"))):
        measure = lambda args=(kind, batch, context): sides.with_codes(args[0]).decode(*args[1:])  # noqa: E731
        figure = Figure(tokens=batch, read=decode_bytes(c, batch, mean_context(context, c.max_seq_len), kind))
        yield Row(f"decode, batch {batch}, context {context}: ours, {kind}", measure, figure, SECONDS["ours"])
    figure = Figure(tokens=T, flops=prefill_flops(c, T))
    measure = lambda: sides.with_codes("Int4").prefill(T)  # noqa: E731
    yield Row(f"with Int4, prefill of {T}: ours", measure, figure, SECONDS["ours"])


def prompts(sides: Sides) -> Iterator[Row]:
    for T in (128, 512, 2048):
        yield from prefill(sides, T)


def others(sides: Sides) -> Iterator[Row]:
    yield decode(sides, "ours", 1, 2048)
    for name in gpu_decoders.DECODERS[1:]:
        yield decode(sides, name, 1, 128)
    yield decode(sides, "fast_compile", 1, 2048)
    for batch in (8, 32):
        yield decode(sides, "fast_compile", batch, 1024)


def rows(parts: list[str], sides: Sides, starts: gpu_start.Starts) -> Iterator[Row]:
    functions = {"first": first, "prompt": prompt, "batches": batches, "products": products}
    functions |= {"quantised": quantised, "prompts": prompts, "others": others}
    for part in parts:
        yield from gpu_start.rows(starts) if part == "start" else functions[part](sides)
