"""Names the fault in another implementation: the one that reproduces its numbers when planted in plain.py.

The other side's logits (and activations, if it has them) are compared with those of the right model and of the model
with each known fault (`trials.py`). A fault is named if it brings them clearly nearer, and to within rounding, which is
measured: the same run, each result rounded to the other side's dtype. Else the first activation that differs is named.
"""

from dataclasses import replace

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.weights import Weights
from llama3.parity.beginning import beginning
from llama3.parity.explanation import Explanation, Tried
from llama3.parity.faults import float32_angles
from llama3.parity.hints import hint
from llama3.parity.planted import PlainModel
from llama3.parity.reference_file import Reference
from llama3.parity.report import RTOL, Report
from llama3.parity.trials import Trials, differs, row_errors
from llama3.parity.weights_hash import other_parts, weights_hash

# The relative error of a row of logits, by the reference's dtype, from which on the model is not the one that the
# reference was made from. It is above the limit of a comparison, as a right implementation may be.
OTHER_MODEL = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 0.16}


def explained(report: Report, ours: Reference, config: ModelConfig, weights: Weights, bos: int | None = None) -> Report:
    """The same report with its `explanation`. Raises CheckpointError as `explain` does.

    ours: the file that was compared with report.reference; or report.reference itself, if the model was compared with
    it. config, weights: of the right model. bos: the id of <|begin_of_text|>, if it is known.
    """
    if report.ok:
        return replace(report, explanation=Explanation(None, [], 0.0, 0.0))
    right = None if ours is report.reference else report.reference
    return replace(report, explanation=explain(ours, config, weights, right, bos))


def explain(
    ours: Reference, config: ModelConfig, weights: Weights, right: Reference | None = None, bos: int | None = None
) -> Explanation:
    """Find what makes the other side's numbers, `ours`, differ from those of the right model.

    right: the right numbers, if there are any. The model must give them, and their tokens may differ from ours.tokens
    by <|begin_of_text|>, whose id is `bos`. Raises CheckpointError if a file belongs to another model, or if none of
    the logits of `ours` is finite.
    """
    for name in ("vocab_size", "dim", "n_layers"):
        if getattr(ours.config, name) != getattr(config, name):
            found, expected = getattr(ours.config, name), getattr(config, name)
            raise CheckpointError(
                f"{name} is {found} in the file and {expected} in the model: these are different models"
            )
    tokens_differ = None if right is None else beginning(ours.tokens, right.tokens)
    trials = Trials(ours, config, weights, bos)
    if right is not None:
        same_tokens = np.array_equal(ours.tokens, right.tokens)
        check_model(trials.model if same_tokens else PlainModel(config, weights, right.tokens.tolist()), right, weights)
    best = None if tokens_differ and trials.same else trials.best()
    nearest = sorted(trials.tried, key=lambda t: t.distance)
    if best is not None:
        cause, lines = named(trials, best)
    elif trials.same and len(trials.not_finite):
        cause = "unknown: logits are not finite"
        lines = [
            f"CAUSE: none of the known faults gives NaN or infinity, which {len(trials.not_finite)} of "
            f"{len(ours.logits)} rows hold, first at position {trials.not_finite[0]}. The others are right to rounding."
        ]
    elif trials.same:
        cause = "rounding"
        lines = [
            f"CAUSE: rounding alone: {trials.dtype} explains a difference of {trials.right:.1e}, "
            "and no known fault comes nearer."
        ]
    else:
        cause, lines = unknown(trials, nearest)
    if tokens_differ:
        only = best is None and trials.same
        cause = f"bos: {tokens_differ}" + ("" if only else f"; {cause}")
        lines = [f"CAUSE: {tokens_differ} in the other side's tokens.", *([] if only else lines)]
    return Explanation(cause, lines, trials.right, trials.rounding, nearest)


def check_model(model: PlainModel, right: Reference, weights: Weights) -> None:
    """Raises CheckpointError unless the model gives the reference's own numbers: a wrong one would accuse anybody."""
    finite = np.isfinite(right.logits).all(axis=1)  # (n,)
    if not finite.all():
        raise CheckpointError(
            "the logits of the reference hold NaN or infinity, first at position "
            f"{right.positions[np.argmin(finite)]}; expected the right numbers"
        )
    limit = OTHER_MODEL[right.dtype]
    errors = row_errors(model.right.logits[right.positions], right.logits)  # (n,)
    if not np.all(errors <= limit):  # or its angles are float32, as transformers has them
        angles = model.run(float32_angles(model.config)).logits[right.positions]
        errors = np.fmin(errors, row_errors(angles, right.logits))
    if not np.all(errors <= limit):
        row = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
        parts = other_parts(weights_hash(weights), right.weights) if right.weights else []
        where = f" (its {parts[0]} has other weights)" if parts else ""
        raise CheckpointError(
            f"the model does not give the reference's own numbers: at position {right.positions[row]} they are "
            f"{errors[row]:.1e} apart, expected at most {limit:.0e}. Give the model that the reference is from{where}"
        )


def named(trials: Trials, best: Tried) -> tuple[str, list[str]]:
    """The cause for programs, and the lines for people."""
    where = ""
    if best.layer is not None:
        where = f" in {'the final norm' if best.layer == trials.config.n_layers else f'layer {best.layer}'} alone"
    cause = f"{best.fault.cause}: {best.fault.what}{where}"
    if best.fault.cause == "cast_order":
        return cause, [
            f"CAUSE: {cause}.",
            f"Both orders are within the rounding of {trials.dtype}. Each was run with that rounding, and this one "
            f"gives nearly the other side's numbers ({best.distance:.1e}).",
        ]
    factor = trials.right / max(best.distance, 1e-30)
    return cause, [
        f"CAUSE: {cause}",
        f"With this fault, our model is {best.distance:.1e} from the other side's logits, {factor:,.0f} "
        f"times nearer than without ({trials.right:.1e}).",
    ]


def unknown(trials: Trials, nearest: list[Tried]) -> tuple[str, list[str]]:
    """The first activation that differs, and what is known of it."""
    ours, values = trials.ours, trials.model.right.values
    lines = []
    for name, theirs in ours.activations.items():
        mine = values[name][ours.positions] if name == "norm" else values.get(name)
        if mine is not None and mine.shape == theirs.shape and differs(mine, theirs, trials.dtype):
            row = int(np.argmax(row_errors(mine, theirs) > RTOL[trials.dtype][1]))
            lines += [f"The first activation that differs is {name}, first at position {row}. {hint(name, row)}"]
            break
    else:
        rows = np.linalg.norm(trials.errors_of(trials.model.right), axis=1)  # (rows,)
        name = "logits"
        row = int(trials.rows[np.argmax(rows > RTOL[trials.dtype][0])])
        lines += [f"The logits differ first at position {row}. {hint(name, row)}"]
    if nearest:
        t = nearest[0]
        lines.append(
            f"Nearest, not the cause: {t.fault.cause}: {t.fault.what} ({t.distance:.1e}; none {trials.right:.1e})."
        )
    return f"unknown: {name} differs first", ["CAUSE: none of the known faults gives these numbers.", *lines]
