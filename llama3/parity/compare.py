"""Compares logits and activations, from a model, a reference file or arrays of your own, with a reference.

The first argument of each function is what is checked. `reference` is a path or a `Reference`, and errors are relative
to it. `limits` are the fields of `Limits`. CheckpointError is raised for what cannot be compared at all, such as
different tokens or different shapes.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.batch import Batch
from llama3.parity.beginning import beginning
from llama3.parity.measures import compare_logits, compare_rows
from llama3.parity.reference_file import Reference, read_reference, same_model
from llama3.parity.report import Limits, Report
from llama3.trace import Recorder

if TYPE_CHECKING:
    from llama3.engine import Model

MODEL_ROWS = 512  # tokens in one forward pass; with Llama 3's vocabulary, their logits take 260 MB


def compare_model(model: "Model", reference: Reference | str | Path, **limits: float | None) -> Report:
    """Run the reference's tokens through a model (`Llama.model`), chunk by chunk, and compare each chunk's output."""
    r = _read(reference)
    same_model(model.config, r.config)
    if len(r.tokens) > model.config.max_seq_len:
        raise CheckpointError(
            f"the reference has {len(r.tokens)} tokens, and the model's context window holds {model.config.max_seq_len}"
        )
    logits: list[np.ndarray] = []
    activations: dict[str, list[np.ndarray]] = {name: [] for name in r.activations}
    recorder = Recorder([name for name in r.activations if name.endswith((".scores", ".weights"))], model.config)
    cache = model.new_cache(1, len(r.tokens))
    slot = cache.allocate()
    for begin in range(0, len(r.tokens), MODEL_ROWS):
        tokens = r.tokens[begin : begin + MODEL_ROWS]
        chunk = slice(begin, begin + len(tokens))
        rows = slice(*np.searchsorted(r.positions, [chunk.start, chunk.stop]))  # rows of r.logits for this chunk

        def trace(name: str, values: np.ndarray, chunk: slice = chunk, rows: slice = rows) -> None:
            recorder(name, values)
            if name in activations:
                expected = r.activations[name][rows if name == "norm" else chunk]
                activations[name].append(compare_rows(*_same_shape(f"activation {name}", values, expected)))

        ours = model.forward(Batch.of([(slot, tokens)]), cache, r.positions[rows] - begin, trace)
        logits.append(compare_logits(ours, r.logits[rows]))
    for name, values in recorder.values().items():  # scores and weights need the keys of all chunks
        activations[name].append(compare_rows(values, r.activations[name]))
    joined = {name: np.concatenate(parts) for name, parts in activations.items()}
    return _report(r, "llama3", model.config, np.concatenate(logits), joined, limits)


def compare_files(ours: Reference | str | Path, reference: Reference | str | Path, **limits: float | None) -> Report:
    """Compare two files of the same tokens: the logits at the reference's positions, and the activations in both."""
    o, r = _read(ours), _read(reference)
    same_model(o.config, r.config)
    if bos := beginning(o.tokens, r.tokens):
        return replace(
            compare_files(*_shifted(o, r), **limits),  # type: ignore[arg-type]
            config_differences=[f"{bos} in the tokens of ours: rows are shifted"],
        )
    if len(missing := np.setdiff1d(r.positions, o.positions)):
        raise CheckpointError(f"ours has no logits at position {missing[0]}, but the reference has")
    indices = np.searchsorted(o.positions, r.positions)

    def at_reference(rows: np.ndarray, name: str = "norm") -> np.ndarray:
        """The rows at the reference's positions, without a copy if that is all of them."""
        return rows if len(indices) == len(rows) or name != "norm" else rows[indices]

    activations = {
        name: compare_rows(*_same_shape(f"activation {name}", at_reference(o.activations[name], name), values))
        for name, values in r.activations.items()
        if name in o.activations
    }
    logits = compare_logits(at_reference(o.logits), r.logits)
    report = _report(r, f"{o.model} ({o.producer}, {o.dtype})", o.config, logits, activations, limits)
    lacks = [_lack("ours", o, "the reference", r), _lack("the reference", r, "ours", o)]
    return replace(report, not_compared=[lack for lack in lacks if lack])


def _lack(one: str, a: Reference, other: str, b: Reference) -> str:
    """A line about the activations that a lacks and b has; empty if there are none."""
    names = [name for name in b.activations if name not in a.activations]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{one} lacks {names[0]}{more} that {other} has" if names else ""


def compare_arrays(
    logits: Any,
    reference: Reference | str | Path,
    *,
    activations: Mapping[str, Any] | None = None,
    **limits: float | None,
) -> Report:
    """Compare arrays, or anything else that NumPy can convert.

    logits: (T, vocab_size), or (n, vocab_size) for the reference's n positions only. activations: any of the
    reference's, by its names, each (T, dim), except `norm`, (n, dim).
    """
    r = _read(reference)
    rows = np.asarray(logits)
    if rows.ndim == 2 and len(rows) == len(r.tokens):
        rows = rows[r.positions]
    compared = {}
    for name, values in (activations or {}).items():
        if name not in r.activations:
            names = ", ".join(r.activations) or "none"
            raise CheckpointError(f"the reference has no activation {name!r}; it has {names}")
        compared[name] = compare_rows(*_same_shape(f"activation {name}", np.asarray(values), r.activations[name]))
    return _report(r, "arrays", r.config, compare_logits(*_same_shape("logits", rows, r.logits)), compared, limits)


def assert_close(logits: Any, reference: Reference | str | Path, *, model: Any = None, **arguments: Any) -> None:
    """`compare_arrays` for tests: raises AssertionError with the whole report unless ours and reference agree.

    model: the folder with the weights, or a loaded `Llama`. If it is given, the report names the fault.
    """
    report = compare_arrays(logits, reference, **arguments)
    if not report.ok and model is not None:
        report = _explained_arrays(report, logits, arguments.get("activations") or {}, model)
    if not report.ok:
        raise AssertionError(f"logits differ from the reference\n{report}")


def _explained_arrays(report: Report, logits: Any, activations: Mapping[str, Any], model: Any) -> Report:
    from llama3.checkpoint import load_folder
    from llama3.parity.explain import explained

    r, rows = report.reference, np.asarray(logits)
    rows = rows[r.positions] if len(rows) == len(r.tokens) else rows
    dtype = rows.dtype.name if rows.dtype.name in ("float16", "bfloat16") else r.dtype
    values = {name: np.asarray(value).astype(np.float32) for name, value in activations.items()}
    checkpoint = load_folder(model) if isinstance(model, str | Path) else model.checkpoint
    ours = replace(r, logits=rows.astype(np.float32), dtype=dtype, activations=values)
    bos = checkpoint.tokenizer.bos_id if checkpoint.tokenizer else None
    return explained(report, ours, checkpoint.config, checkpoint.weights, bos)


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
        if a[name] != b[name] and name != "max_seq_len"  # the context length does not change what is computed
    ]
    ordered = {name: activations[name] for name in reference.activations if name in activations}
    return Report(reference, ours, Limits(**limits), logits, ordered, differences)


def _shifted(ours: Reference, reference: Reference) -> tuple[Reference, Reference]:
    """Both at the tokens that they share, where ours begins with one <|begin_of_text|> fewer or more."""
    by = len(reference.tokens) - len(ours.tokens)  # position p of ours is p + by of the reference
    shared = np.intersect1d(ours.positions + by, reference.positions)
    if not len(shared):
        raise CheckpointError("ours has logits at none of the reference's positions")
    rows, at = np.searchsorted(ours.positions + by, shared), np.searchsorted(reference.positions, shared)
    r = replace(reference, logits=reference.logits[at], positions=shared, activations={})
    return replace(
        r, logits=ours.logits[rows], config=ours.config, dtype=ours.dtype, producer=ours.producer, model=ours.model
    ), r


def _read(reference: Reference | str | Path) -> Reference:
    return reference if isinstance(reference, Reference) else read_reference(reference)


def _same_shape(name: str, ours: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if ours.shape != reference.shape:
        raise CheckpointError(f"{name} of shape {ours.shape}; expected {reference.shape}, as in the reference")
    return ours, reference
