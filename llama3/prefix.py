"""A saved prompt: its tokens, and the keys and values that a model has computed for them, in a safetensors file.

The file also says which model that was. Keys and values of another model may have the right shape and would still be
useless, so only the model that made a prefix accepts it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llama3.checkpoint import Checkpoint
from llama3.config import ModelConfig
from llama3.errors import CheckpointError, RequestError
from llama3.model.lora import Adapter
from llama3.model.quantised import QuantisedMatrix

FORMAT, VERSION = "llama3 prefix", "1"
SAMPLES = 32  # values of each matrix in the hash of the weights


@dataclass(frozen=True)
class Prefix:
    tokens: np.ndarray  # (T,) int64
    k: np.ndarray  # (n_layers, n_kv_heads, T, head_dim), rotated; float32 from a CPU, bfloat16 from a GPU
    v: np.ndarray  # (n_layers, n_kv_heads, T, head_dim), the same dtype
    made_by: dict[str, str]  # from `identity`


def identity(checkpoint: Checkpoint, adapter: Adapter | None) -> dict[str, str]:
    """What keys and values depend on: the model's name, shape and weights, and the adapter.

    "weights" is a hash of a few values of every matrix, because reading all 16 GB of an 8B model takes too long. It
    differs between a base model and its fine-tunes. "adapter" is a hash of all its values; empty if there is none.
    """
    weights, digest = checkpoint.weights, sha256()
    for layer in weights.layers:
        for matrix in vars(layer).values():
            digest.update(_sample(matrix))
    for matrix in (weights.tok_embeddings, weights.norm, weights.output):
        digest.update(_sample(matrix))
    return {
        "model": checkpoint.path.absolute().name,
        "config": json.dumps(asdict(checkpoint.config)),
        "weights": digest.hexdigest(),
        "adapter": adapter_hash(adapter) if adapter is not None else "",
    }


def adapter_hash(adapter: Adapter) -> str:
    digest = sha256()
    for layer in adapter:
        for name, pair in sorted(layer.items()):
            digest.update(name.encode() + pair.a.tobytes() + pair.b.tobytes())
    return digest.hexdigest()


def _sample(matrix: np.ndarray | QuantisedMatrix) -> bytes:
    if isinstance(matrix, QuantisedMatrix):
        return b"".join(map(_sample, matrix.arrays))
    places = np.linspace(0, matrix.size - 1, SAMPLES).astype(np.int64)
    return matrix.dtype.name.encode() + matrix[np.unravel_index(places, matrix.shape)].tobytes()


def save(path: str | Path, prefix: Prefix) -> None:
    """Write the file under a temporary name, and rename it when it is complete.

    Raises RequestError if it cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    tensors = {"tokens": prefix.tokens, "k": np.ascontiguousarray(prefix.k), "v": np.ascontiguousarray(prefix.v)}
    try:
        save_file(tensors, part, {"format": FORMAT, "version": VERSION, **prefix.made_by})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise RequestError(f"{path}: the prefix cannot be written: {error}") from error


def read(path: str | Path) -> Prefix:
    """Read a file that `save` wrote. Raises CheckpointError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; save_prefix writes it")
    try:
        with safe_open(path, "np") as file:
            found = file.metadata() or {}
            if (found.pop("format", None), found.pop("version", None)) != (FORMAT, VERSION):
                raise CheckpointError(f"{path}: not a saved prefix of version {VERSION}; save_prefix writes one")
            expected = {"model", "config", "weights", "adapter", "tokens", "k", "v"}
            if missing := expected - found.keys() - set(file.keys()):
                raise CheckpointError(f"{path}: {min(missing)} is missing; save the prefix again")
            return Prefix(file.get_tensor("tokens"), file.get_tensor("k"), file.get_tensor("v"), found)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors file: {error}") from error


def check(path: str | Path, prefix: Prefix, mine: Mapping[str, str], config: ModelConfig, dtype: np.dtype[Any]) -> None:
    """Raises CheckpointError, with the file and what differs, unless this model could have computed the prefix.

    mine: from `identity`; its adapter is not compared. dtype: the dtype of the model's keys and values.
    """
    theirs = prefix.made_by
    if differs := [name for name in ("config", "weights") if theirs[name] != mine[name]]:
        raise CheckpointError(
            f"{path}: the prefix was made by the model {theirs['model']!r}, and this is {mine['model']!r}: the "
            f"{'shape' if differs[0] == 'config' else 'weights'} differ{'s' * (differs[0] == 'config')}; "
            "save the prefix again with this model"
        )
    if prefix.k.dtype != dtype:
        raise CheckpointError(
            f"{path}: its keys and values are {prefix.k.dtype}, and this device computes {dtype}; "
            "save the prefix again on this device"
        )
    tokens, n = prefix.tokens, len(prefix.tokens)
    shape = (config.n_layers, config.n_kv_heads, n, config.head_dim)
    if not (tokens.shape == (n,) and tokens.dtype == np.int64 and 0 < n <= config.max_seq_len):
        raise CheckpointError(f"{path}: tokens is {tokens.dtype} of shape {tokens.shape}; expected a list of token ids")
    if not (prefix.k.shape == prefix.v.shape == shape and prefix.v.dtype == dtype):
        raise CheckpointError(
            f"{path}: k and v have the shapes {prefix.k.shape} and {prefix.v.shape}; expected {shape}"
        )
    if not (tokens.min() >= 0 and tokens.max() < config.vocab_size):
        raise CheckpointError(f"{path}: a token is outside the vocabulary of {config.vocab_size}; the file is damaged")


def adapter_name(path: str | Path, prefix: Prefix, adapters: Mapping[str, Adapter]) -> str | None:
    """The name of the loaded adapter that the prefix was made with; None if it was made without one.

    Raises CheckpointError if that adapter is not loaded.
    """
    found = prefix.made_by["adapter"]
    if not found:
        return None
    for name, adapter in adapters.items():
        if adapter_hash(adapter) == found:
            return name
    raise CheckpointError(
        f"{path}: the prefix was made with a LoRA adapter that is not loaded; loaded: {', '.join(adapters) or 'none'}"
    )
