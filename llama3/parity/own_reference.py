"""Makes a reference with this project: in float64, in float32 as the model runs, or with bfloat16 rounding."""

from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from llama3 import plain
from llama3.activation_names import choose_names
from llama3.checkpoint import Checkpoint
from llama3.errors import RequestError
from llama3.llama import Llama
from llama3.parity import rounding
from llama3.parity.reference_file import Reference
from llama3.parity.weights_hash import weights_hash

HOW = {
    "float64": "plain.py",
    "float32": "NumPy model",
    "bfloat16": "plain.py, each result rounded as transformers does, {} attention",
    "float16": "plain.py, each result rounded as transformers does, {} attention",
}


def own_reference(
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    dtype: str = "float64",
    activations: str | Collection[str] = (),
    attention: str = "eager",
) -> Reference:
    """Run tokens through a checkpoint -> a reference with all logits, hashes of the weights, and `activations`.

    dtype: "float64" is `plain.forward`; "float32" the fast model in NumPy; "bfloat16" and "float16" round each result
    (`rounding.forward`), with "eager" or "sdpa" attention. activations: names or patterns, as for `Llama.trace`.
    Raises RequestError.
    """
    if dtype not in HOW:
        raise RequestError(f"dtype is {dtype!r}; expected {', '.join(HOW)}")
    if attention not in rounding.ATTENTION:
        raise RequestError(f"attention is {attention!r}; expected {' or '.join(rounding.ATTENTION)}")
    c, ids = checkpoint.config, [int(token) for token in tokens]
    if not ids or not all(0 <= token < c.vocab_size for token in ids):
        raise RequestError(f"expected at least one token, and ids from 0 to {c.vocab_size - 1}; found {ids[:8]}")
    names = set(choose_names(activations, c)) - {"logits"}
    kept: dict[str, np.ndarray] = {}

    def see(name: str, value: np.ndarray) -> None:
        if name in names:
            kept[name] = value.astype(np.float32)

    if dtype == "float32":
        kept = Llama(checkpoint, linear="numpy").trace(ids, [*names, "logits"])
        logits = kept.pop("logits")
    elif dtype == "float64":
        logits = plain.forward(ids, c, checkpoint.weights, see).astype(np.float32)
    else:
        logits = rounding.forward(ids, c, checkpoint.weights, see, dtype, attention).astype(np.float32)
    return Reference(
        tokens=np.array(ids, np.int64),
        logits=logits,
        positions=np.arange(len(ids)),
        config=c,
        dtype=dtype,
        producer=f"llama3 {_version()}, {HOW[dtype].format(attention)}{_weights(checkpoint)}",
        model=checkpoint.path.resolve().name,
        activations=kept,
        weights=weights_hash(checkpoint.weights),
    )


def _weights(checkpoint: Checkpoint) -> str:
    """Scheme and bits of quantised weights, or nothing."""
    return f", weights {checkpoint.scheme.description.partition(', a scale')[0]}" if checkpoint.scheme else ""


def _version() -> str:
    try:
        return version("llama3")
    except PackageNotFoundError:
        return "(not installed)"
