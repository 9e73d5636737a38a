"""The compact reference: a few KB that say what a model computes, for those who do not have its weights.

For each position it holds the 64 highest logits with their ids, and log(sum(exp(logits))), so that probabilities are
known too. It also has hashes of the weights. It is a safetensors file; its tensors:
  tokens      (T,) int64: one sequence from position 0
  ids         (T, 64) int32: the tokens with the highest logits, highest first; of equal logits the lowest id first
  logits      (T, 64) float32
  log_sum     (T,) float64; all 0 if `logits` are log-probabilities
The metadata are those of a reference file, with another format.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.batch import Batch
from llama3.parity.beginning import beginning
from llama3.parity.reference_file import (
    DTYPES,
    Reference,
    check_array,
    config_from_json,
    hashes_from_json,
    same_model,
    unreadable,
    write_tensors,
)
from llama3.parity.report import RTOL, Limits
from llama3.parity.weights_hash import other_parts

if TYPE_CHECKING:
    from llama3.engine import Model

FORMAT, VERSION = "llama3-compact-reference", "1"
TOP = 64
ROWS = 256  # tokens of one forward pass


@dataclass(frozen=True)
class Compact:
    """A compact reference. Raises CheckpointError, naming the field, unless the fields fit together."""

    tokens: np.ndarray  # (T,) int64
    ids: np.ndarray  # (T, k) int32; k is TOP, or the vocabulary's size if that is less
    logits: np.ndarray  # (T, k) float32
    log_sum: np.ndarray  # (T,) float64
    config: ModelConfig
    dtype: str
    producer: str
    model: str
    weights: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        T, k, vocab_size = self.tokens.size, min(TOP, self.config.vocab_size), self.config.vocab_size
        check_array("tokens", self.tokens, np.int64, ("T",))
        check_array("ids", self.ids, np.int32, (T, k))
        check_array("logits", self.logits, np.float32, (T, k))
        check_array("log_sum", self.log_sum, np.float64, (T,))
        for name in ("tokens", "ids"):
            if np.any((getattr(self, name) < 0) | (getattr(self, name) >= vocab_size)):
                raise CheckpointError(f"{name} holds ids outside 0 to {vocab_size - 1}, the vocabulary in its config")
        if not (np.isfinite(self.logits).all() and np.isfinite(self.log_sum).all()):
            raise CheckpointError("logits or log_sum hold NaN or infinity; expected numbers")
        if self.dtype not in DTYPES:
            raise CheckpointError(f"dtype is {self.dtype!r}; expected {', '.join(DTYPES)}")


def compact_of(reference: Reference) -> Compact:
    """The highest logits and the log of the sum at each position of a reference, which must have all positions."""
    r = reference
    if len(r.positions) != len(r.tokens):
        raise CheckpointError(
            f"the reference has logits at {len(r.positions)} of {len(r.tokens)} positions; expected all"
        )
    k, log_sum = min(TOP, r.config.vocab_size), _log_sum(r.logits)
    ids = np.argsort(-r.logits, axis=1, kind="stable")[:, :k].astype(np.int32)
    logits = np.take_along_axis(r.logits, ids, axis=1)
    return Compact(r.tokens, ids, logits, log_sum, r.config, r.dtype, r.producer, r.model, r.weights)


def save_compact(path: str | Path, compact: Compact) -> None:
    """Write a compact reference. The same one always gives the same bytes."""
    metadata = {"format": FORMAT, "version": VERSION, "producer": compact.producer, "dtype": compact.dtype}
    metadata |= {"model": compact.model, "config": json.dumps(asdict(compact.config))}
    metadata |= {"weights": json.dumps(dict(compact.weights))}
    tensors = {name: getattr(compact, name) for name in ("tokens", "log_sum", "ids", "logits")}
    write_tensors(path, tensors, metadata)


def is_compact(path: str | Path) -> bool:
    """Whether a file is a compact reference. False for what cannot be read; `read_reference` then says why."""
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def read_compact(path: str | Path) -> Compact:
    """Read a compact reference. Raises CheckpointError with the file, what was found and what was expected."""
    try:
        with safe_open(path, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            found = f"{metadata.get('format')!r}, version {metadata.get('version')!r}"
            raise CheckpointError(f"the format is {found}; expected {FORMAT!r}, version {VERSION!r}")
        tensors = load_file(path)
        names = ("tokens", "ids", "logits", "log_sum")
        if missing := [name for name in names if name not in tensors]:
            raise CheckpointError(f"the tensor {missing[0]} is missing")
        if missing := [name for name in ("producer", "dtype", "model", "config") if name not in metadata]:
            raise CheckpointError(f"{missing[0]} is missing in the metadata")
        return Compact(
            **{name: tensors[name] for name in names},
            config=config_from_json(metadata["config"]),
            dtype=metadata["dtype"],
            producer=metadata["producer"],
            model=metadata["model"],
            weights=hashes_from_json(metadata.get("weights", "{}")),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True)
class CompactReport:
    """How far logits are from a compact reference, at each position."""

    reference: Compact
    limits: Limits
    relative: np.ndarray  # (T,): norm of the difference of the k logits / norm of the reference's
    log_probability: np.ndarray  # (T,): the largest difference of a log-probability
    kl: np.ndarray  # (T,): KL divergence in nats, where all other tokens count as one: at most the real one
    top1: np.ndarray  # (T,) bool: the same most likely token
    other_weights: list[str]  # parts of the model whose hashes differ
    quantised: str | None = None  # how the weights of ours are, as `Checkpoint.scheme` describes it

    @property
    def rtol(self) -> float:
        return RTOL[self.reference.dtype][0] if self.limits.rtol is None else self.limits.rtol

    @property
    def ok(self) -> bool:
        return not self.breaches

    @property
    def breaches(self) -> list[str]:
        """A line for every limit that is exceeded."""
        found = []
        tests = [("relative error of the logits", self.relative, self.rtol)]
        if self.limits.max_kl is not None:
            tests.append(("KL divergence", self.kl, self.limits.max_kl))
        for what, values, limit in tests:
            if (bad := ~(values <= limit)).any():
                where = f"at {bad.sum()} of {len(bad)} positions, first at {np.argmax(bad)}"
                found.append(f"{what} over {limit:.1e} {where}")
        if self.limits.min_top1 is not None and self.top1.mean() < self.limits.min_top1:
            found.append(f"top-1 agreement is {self.top1.mean():.2%}, expected {self.limits.min_top1:.2%} or more")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with None for NaN and infinity."""
        numbers = {
            name: [float(x) if np.isfinite(x) else None for x in values] for name, values in self._rows().items()
        }
        r = self.reference
        return {
            "ok": self.ok,
            "breaches": self.breaches,
            "reference": {"model": r.model, "producer": r.producer, "dtype": r.dtype, "tokens": len(r.tokens)},
            "other_weights": self.other_weights,
            "quantised": self.quantised,
            "top1": float(self.top1.mean()),
            "positions": numbers | {"top1": self.top1.tolist()},
        }

    def __str__(self) -> str:
        r = self.reference
        lines = [
            f"reference  {r.model} ({r.producer}, {r.dtype}), compact",
            f"           {len(r.tokens)} tokens, {r.ids.shape[1]} logits at each position",
            *([f"quantised  {self.quantised}"] if self.quantised else []),
            *(f"weights    those of {name} are not the reference's" for name in self.other_weights[:3]),
            "",
            f"{'':<28}{'median':>12}{'worst':>12}{'at position':>14}",
        ]
        for name, values in self._rows().items():
            at = int(np.argmax(values))
            what = name.replace("_", " ").replace("kl", "KL divergence (nats)").replace("relative", "relative error")
            lines.append(f"{what:<28}{np.median(values):>12.1e}{values[at]:>12.1e}{at:>14}")
        lines += [f"{'top-1 agreement':<28}{self.top1.sum():>12} of {len(self.top1)}", ""]
        return "\n".join(lines + ([f"DIFFERS: {breach}" for breach in self.breaches] or ["equal within the limits"]))

    def _rows(self) -> dict[str, np.ndarray]:
        return {"relative": self.relative, "log_probability": self.log_probability, "kl": self.kl}


def compare_compact(
    logits: np.ndarray | Callable[[slice], np.ndarray],
    reference: Compact | str | Path,
    weights: Mapping[str, str] | None = None,
    **limits: float | None,
) -> CompactReport:
    """Compare logits (T, vocab_size), or a function that gives those of some rows, with a compact reference.

    weights: hashes of the weights (`weights_hash`), if known. Raises CheckpointError for another shape.
    """
    r = reference if isinstance(reference, Compact) else read_compact(reference)
    T, vocab_size = len(r.tokens), r.config.vocab_size
    if isinstance(logits, np.ndarray) and logits.shape != (T, vocab_size):
        raise CheckpointError(f"logits of shape {logits.shape}; expected {(T, vocab_size)}, as in the reference")
    relative, log_p, kl, top1 = np.empty(T), np.empty(T), np.empty(T), np.empty(T, bool)
    for begin in range(0, T, ROWS):
        rows = slice(begin, min(begin + ROWS, T))
        ours = (logits(rows) if callable(logits) else logits[rows]).astype(np.float64)  # (n, vocab_size)
        if not r.log_sum.any():  # the reference has log-probabilities, as vLLM gives them
            ours -= _log_sum(ours)[:, None]
        a, b = np.take_along_axis(ours, r.ids[rows], axis=1), r.logits[rows].astype(np.float64)  # (n, k)
        with np.errstate(all="ignore"):
            finite = np.isfinite(ours).all(axis=1)
            relative[rows] = np.where(finite, np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1), np.nan)
            log_a, log_b = a - _log_sum(ours)[:, None], b - r.log_sum[rows, None]
            log_p[rows] = np.abs(log_a - log_b).max(axis=1)
            rest_a, rest_b = (np.maximum(1 - np.exp(x).sum(axis=1), 1e-12) for x in (log_a, log_b))
            known = (np.exp(log_b) * (log_b - log_a)).sum(axis=1)
            kl[rows] = np.maximum(known + rest_b * np.log(rest_b / rest_a), 0)
        top1[rows] = ours.argmax(axis=1) == r.ids[rows, 0]
    return CompactReport(r, Limits(**limits), relative, log_p, kl, top1, other_parts(weights or {}, r.weights))


def compare_file_compact(ours: Reference, reference: Compact | str | Path, **limits: float | None) -> CompactReport:
    """Compare a reference file of the same tokens, with logits at all positions, with a compact one."""
    r = reference if isinstance(reference, Compact) else read_compact(reference)
    same_model(ours.config, r.config)
    if bos := beginning(ours.tokens, r.tokens):
        raise CheckpointError(f"{bos} in ours; expected the reference's {len(r.tokens)} tokens")
    if len(ours.positions) != len(r.tokens):
        raise CheckpointError(f"ours has logits at {len(ours.positions)} of {len(r.tokens)} positions; expected all")
    return compare_compact(ours.logits, r, ours.weights, **limits)


def compare_model_compact(model: "Model", reference: Compact | str | Path, **arguments: Any) -> CompactReport:
    """Run the reference's tokens through a model (`Llama.model`), and compare. arguments: as of `compare_compact`."""
    r = reference if isinstance(reference, Compact) else read_compact(reference)
    same_model(model.config, r.config)
    if len(r.tokens) > (most := model.config.max_seq_len):
        raise CheckpointError(f"the reference has {len(r.tokens)} tokens, and the model's context window holds {most}")
    cache = model.new_cache(1, len(r.tokens))
    slot = cache.allocate()

    def logits(rows: slice) -> np.ndarray:
        tokens = r.tokens[rows]
        return model.forward(Batch.of([(slot, tokens)]), cache, np.arange(len(tokens)))

    return compare_compact(logits, r, **arguments)


def _log_sum(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))) of each row, float64."""
    x = logits.astype(np.float64)
    top = x.max(axis=1)
    return np.asarray(top + np.log(np.exp(x - top[:, None]).sum(axis=1)))
