"""Logits and activations against a reference: from a model, from another file, or from arrays of your own.

Ours comes first, and errors are relative to the reference, which is a path or what `read_reference` has returned.
limits: the fields of `Limits`. What cannot be compared at all, say other tokens or other shapes, is a CheckpointError.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.batch import Batch
from llama3.parity.measures import compare_logits, compare_rows
from llama3.parity.reference_file import Reference, read_reference
from llama3.parity.report import Limits, Report

if TYPE_CHECKING:
    from llama3.engine import Model

MODEL_ROWS = 512  # tokens a forward pass: with the real vocabulary, their logits take 260 MB


def compare_model(model: "Model", reference: Reference | str | Path, **limits: float | None) -> Report:
    """Run the reference's tokens through a model (`Llama.model`), and compare what comes as it comes."""
    r = _read(reference)
    _same_fields(model.config, r.config, "vocab_size", "dim", "n_layers")
    if len(r.tokens) > model.config.max_seq_len:
        raise CheckpointError(
            f"the reference has {len(r.tokens)} tokens, and the model's context window holds {model.config.max_seq_len}"
        )
    logits: list[np.ndarray] = []
    activations: dict[str, list[np.ndarray]] = {name: [] for name in r.activations}
    cache = model.new_cache(1, len(r.tokens))
    slot = cache.allocate()
    for begin in range(0, len(r.tokens), MODEL_ROWS):
        tokens = r.tokens[begin : begin + MODEL_ROWS]
        block = slice(begin, begin + len(tokens))
        kept = slice(*np.searchsorted(r.positions, [block.start, block.stop]))  # the logits' rows that stand in it

        def trace(name: str, values: np.ndarray, block: slice = block, kept: slice = kept) -> None:
            if name in activations:
                activations[name].append(compare_rows(values, r.activations[name][kept if name == "norm" else block]))

        ours = model.forward(Batch.of([(slot, tokens)]), cache, r.positions[kept] - begin, trace)
        logits.append(compare_logits(ours, r.logits[kept]))
    joined = {name: np.concatenate(parts) for name, parts in activations.items()}
    return _report(r, "llama3 in NumPy", model.config, np.concatenate(logits), joined, limits)


def compare_files(ours: Reference | str | Path, reference: Reference | str | Path, **limits: float | None) -> Report:
    """Two files of the same tokens: at the reference's positions, and in the activations that both hold."""
    o, r = _read(ours), _read(reference)
    _same_fields(o.config, r.config, "vocab_size", "dim", "n_layers")
    if not np.array_equal(o.tokens, r.tokens):
        n, m = len(o.tokens), len(r.tokens)
        first = next((i for i in range(min(n, m)) if o.tokens[i] != r.tokens[i]), min(n, m))
        raise CheckpointError(
            f"the files hold different tokens, {n} and {m} of them; the first difference is at {first}"
        )
    if len(missing := np.setdiff1d(r.positions, o.positions)):
        raise CheckpointError(f"ours has no logits at position {missing[0]}, and the reference has")
    at = np.searchsorted(o.positions, r.positions)

    def chosen(rows: np.ndarray) -> np.ndarray:
        return rows if len(at) == len(rows) else rows[at]

    activations = {
        name: compare_rows(chosen(o.activations[name]) if name == "norm" else o.activations[name], values)
        for name, values in r.activations.items()
        if name in o.activations
    }
    logits = compare_logits(chosen(o.logits), r.logits)
    return _report(r, f"{o.model} ({o.producer}, {o.dtype})", o.config, logits, activations, limits)


def compare_arrays(
    logits: Any,
    reference: Reference | str | Path,
    *,
    activations: Mapping[str, Any] | None = None,
    **limits: float | None,
) -> Report:
    """Anything that NumPy can read: logits (T, vocab_size), or (n, vocab_size) for the reference's positions alone.

    activations: (T, dim) each, by the reference's names, as many of them as you have; `norm` has as many rows as the
    reference's logits.
    """
    r = _read(reference)
    rows = np.asarray(logits)
    if rows.ndim == 2 and len(rows) == len(r.tokens):
        rows = rows[r.positions]
    compared = {}
    for name, values in (activations or {}).items():
        if name not in r.activations:
            held = ", ".join(r.activations) or "none"
            raise CheckpointError(f"the reference has no activation {name!r}; it has {held}")
        compared[name] = compare_rows(*_same_shape(f"activation {name}", np.asarray(values), r.activations[name]))
    return _report(r, "arrays", r.config, compare_logits(*_same_shape("logits", rows, r.logits)), compared, limits)


def assert_close(logits: Any, reference: Reference | str | Path, **arguments: Any) -> None:
    """`compare_arrays`, for tests: raises AssertionError with the whole report unless the two agree."""
    report = compare_arrays(logits, reference, **arguments)
    if not report.ok:
        raise AssertionError(f"logits differ from the reference\n{report}")


def _report(
    reference: Reference,
    ours: str,
    config: ModelConfig,
    logits: np.ndarray,
    activations: Mapping[str, np.ndarray],
    limits: Mapping[str, float | None],
) -> Report:
    a, b = asdict(config), asdict(reference.config)
    differences = [
        f"{name} is {a[name]} in ours, {b[name]} in the reference"
        for name in a
        if a[name] != b[name] and name != "max_seq_len"  # how far a model may go is not part of what it computes
    ]
    ordered = {name: activations[name] for name in reference.activations if name in activations}
    return Report(reference, ours, Limits(**limits), logits, ordered, differences)


def _read(reference: Reference | str | Path) -> Reference:
    return reference if isinstance(reference, Reference) else read_reference(reference)


def _same_fields(ours: ModelConfig, reference: ModelConfig, *names: str) -> None:
    for name in names:
        a, b = getattr(ours, name), getattr(reference, name)
        if a != b:
            raise CheckpointError(f"{name} is {a} in ours and {b} in the reference: these are different models")


def _same_shape(name: str, ours: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if ours.shape != reference.shape:
        raise CheckpointError(f"{name} of shape {ours.shape}; the reference's have {reference.shape}")
    return ours, reference
