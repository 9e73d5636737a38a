"""The reference file: one implementation's logits for some tokens, for checking the numbers of another.

It is a safetensors file. docs/parity.md describes it for people who write one with other tools. Its tensors:
  tokens              (T,) int64: one sequence from position 0
  logits              (n, vocab_size) float32
  positions           (n,) int64, ascending: the position of each row of `logits`; absent if each token has a row
  activations.<name>  float32: any of `activation_names` but the logits, or none. A row for each token; `norm` n rows
The metadata are strings: format, version, producer, dtype, model, config (JSON with the fields of ModelConfig), and
perhaps weights (JSON: hashes by part of the model, see weights_hash.py).
Version 1 has no weights, and of the activations only the embedding, each block's output, and `norm`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from llama3.activation_names import activation_names, activation_shape, missing_part
from llama3.config import ModelConfig, RopeScaling
from llama3.errors import CheckpointError
from llama3.lfs_pointer import LFS_POINTER, is_lfs_pointer

FORMAT, VERSIONS = "llama3-reference", ("1", "2")
DTYPES = ("float64", "float32", "float16", "bfloat16")  # in which a reference can be computed
STORED: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class Reference:
    """One implementation's output. Raises CheckpointError, naming the field, unless the fields fit together."""

    tokens: np.ndarray  # (T,) int64
    logits: np.ndarray  # (n, vocab_size) float32
    positions: np.ndarray  # (n,) int64
    config: ModelConfig
    dtype: str  # what it was computed in: one of DTYPES. The arrays are float32 in any case
    producer: str  # the software: "transformers 5.23.0, torch 2.13.0"
    model: str  # free text that identifies the weights
    activations: Mapping[str, np.ndarray] = field(default_factory=dict)  # sorted in the order of computation
    weights: Mapping[str, str] = field(default_factory=dict)  # hashes (`weights_hash`); empty: not known

    def __post_init__(self) -> None:
        c = self.config
        if self.dtype not in DTYPES:
            raise CheckpointError(f"dtype is {self.dtype!r}; expected {', '.join(DTYPES)}")
        check_array("tokens", self.tokens, np.int64, ("T",))
        if not np.all((self.tokens >= 0) & (self.tokens < c.vocab_size)):
            raise CheckpointError(f"tokens holds ids outside 0 to {c.vocab_size - 1}, the vocabulary in its config")
        check_array("logits", self.logits, np.float32, ("n", c.vocab_size))
        check_array("positions", self.positions, np.int64, (len(self.logits),))
        if np.any(np.diff(self.positions) <= 0) or self.positions[0] < 0 or self.positions[-1] >= len(self.tokens):
            raise CheckpointError(f"positions must ascend from 0 or more to {len(self.tokens) - 1} or less")
        known = activation_names(c)[:-1]  # without the logits
        for name, values in self.activations.items():
            if name not in known:
                lack = missing_part(name, c)
                reason = f": {lack}" if lack else f"; expected {', '.join(known[:4])}, ..., norm"
                raise CheckpointError(f"activations.{name} is unknown{reason}")
            T, *width = activation_shape(name, c, len(self.tokens))
            check_array(f"activations.{name}", values, np.float32, (len(self.logits) if name == "norm" else T, *width))
        if self.activations:
            ordered = {name: self.activations[name] for name in known if name in self.activations}
            object.__setattr__(self, "activations", ordered)

    @property
    def version(self) -> str:
        """The lowest version of the format that can hold this reference, so that old programs read what they can."""
        blocks = re.compile(r"tok_embeddings|layers\.\d+(\.attention|\.feed_forward)?|norm")
        return "1" if not self.weights and all(map(blocks.fullmatch, self.activations)) else "2"


def save_reference(path: str | Path, reference: Reference) -> None:
    """Write a reference file. The same reference always gives the same bytes.

    The safetensors library could not be used for this: its writer changes the order of the metadata from run to run.
    """
    r = reference
    metadata = {
        "format": FORMAT,
        "version": r.version,
        "producer": r.producer,
        "dtype": r.dtype,
        "model": r.model,
        "config": json.dumps(asdict(r.config)),
    }
    if r.weights:
        metadata["weights"] = json.dumps(dict(r.weights))
    tensors = {"tokens": r.tokens, "positions": r.positions, "logits": r.logits}
    if len(r.positions) == len(r.tokens):
        del tensors["positions"]
    tensors |= {f"activations.{name}": values for name, values in r.activations.items()}
    write_tensors(path, tensors, metadata)


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on nothing else."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": f"{'I' if array.dtype.kind == 'i' else 'F'}{8 * array.dtype.itemsize}",
            "shape": array.shape,
            "data_offsets": [end, end := end + array.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def read_reference(path: str | Path) -> Reference:
    """Open a reference file. Its arrays are read-only views of the memory-mapped file, which may have 4 GB of logits.

    Raises CheckpointError with the file, the field, what was found and what was expected.
    """
    path = Path(path)
    try:
        tensors, metadata = _open(path)
        return _reference(tensors, metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: NumPy raises it for sizes of 0 and 2^63
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> CheckpointError:
    """The error to raise for a file that the safetensors library or the operating system refuses."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: there is no such file; expected one that `llama3 reference` wrote")
    if isinstance(error, OSError):
        return CheckpointError(f"{path}: cannot be read: {error.strerror or error}")
    return CheckpointError(f"{path}: cannot be read as a safetensors file, it may be cut off or damaged: {error}")


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with path.open("rb") as stream:
        if is_lfs_pointer(stream.read(64)):
            raise CheckpointError(LFS_POINTER)
    with safe_open(path, "np") as file:  # raises SafetensorError for a header that does not fit the file
        metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        raise CheckpointError(f"not a reference file: the metadata's format is {found!r}; expected {FORMAT!r}")
    if (found := metadata.get("version")) not in VERSIONS:
        raise CheckpointError(f"version is {found!r}; this program reads the versions {', '.join(VERSIONS)}")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    del header["__metadata__"]
    if missing := {"tokens", "logits"} - header.keys():
        raise CheckpointError(f"the tensor {min(missing)} is missing")
    data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + length))
    tensors = {}
    for name, entry in header.items():
        expected = "I64" if name in ("tokens", "positions") else "F32"
        if entry["dtype"] != expected:
            raise CheckpointError(
                f"{name} is stored as {entry['dtype']}; expected {expected}, whatever the model's dtype"
            )
        begin, end = entry["data_offsets"]
        tensors[name] = data[begin:end].view(STORED[expected]).reshape(entry["shape"])
    return tensors, metadata


def _reference(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Reference:
    texts = ("producer", "dtype", "model", "config")
    if missing := [name for name in texts if name not in metadata]:
        raise CheckpointError(f"{missing[0]} is missing in the metadata")
    tokens, logits = tensors.pop("tokens"), tensors.pop("logits")
    positions = tensors.pop("positions", None)
    if positions is None:
        if tokens.shape[:1] != logits.shape[:1]:
            raise CheckpointError(
                f"logits has the shape {logits.shape} and tokens {tokens.shape}; expected a row for each token, or "
                "the tensor positions"
            )
        positions = np.arange(tokens.size)
    prefix = "activations."
    if other := [name for name in tensors if not name.startswith(prefix)]:
        raise CheckpointError(f"the tensor {other[0]} is unknown; expected tokens, logits, positions, {prefix}<name>")
    return Reference(
        tokens,
        logits,
        positions,
        config_from_json(metadata["config"]),
        metadata["dtype"],
        metadata["producer"],
        metadata["model"],
        {name.removeprefix(prefix): array for name, array in tensors.items()},
        hashes_from_json(metadata.get("weights", "{}")),
    )


def same_model(ours: ModelConfig, reference: ModelConfig) -> None:
    """Raises CheckpointError unless both configs have the sizes that a comparison needs to be equal."""
    for name in ("vocab_size", "dim", "n_layers"):
        a, b = getattr(ours, name), getattr(reference, name)
        if a != b:
            raise CheckpointError(f"{name} is {a} in ours and {b} in the reference: these are different models")


def hashes_from_json(text: str) -> dict[str, str]:
    """The hashes of a file's metadata. Raises CheckpointError."""
    try:
        hashes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"weights in the metadata is not a JSON object: {error}") from error
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise CheckpointError("weights in the metadata must be a JSON object of hashes, all of them text")
    return hashes


def config_from_json(text: str) -> ModelConfig:
    """The config of a file's metadata. Raises CheckpointError."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"found {type(values).__name__}, expected an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config in the metadata is not a JSON object: {error}") from error
    values = _exact_fields(ModelConfig, values, "config")
    scaling = values["rope_scaling"]
    if scaling is not None and not isinstance(scaling, dict):
        raise CheckpointError(f"config.rope_scaling is {scaling!r}; expected an object or null")
    try:
        if scaling is not None:
            values["rope_scaling"] = RopeScaling(**_exact_fields(RopeScaling, scaling, "config.rope_scaling"))
        return ModelConfig(**values)
    except TypeError as error:
        raise CheckpointError(f"config has a field of the wrong type: {error}") from error


def _exact_fields(cls: type[ModelConfig] | type[RopeScaling], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns `values`. Raises CheckpointError unless its keys are exactly the fields of the class."""
    names = [f.name for f in fields(cls)]
    if unknown := values.keys() - set(names):
        raise CheckpointError(f"{where}.{min(unknown)} is unknown; expected {', '.join(names)}")
    if missing := [name for name in names if name not in values]:
        raise CheckpointError(f"{where}.{missing[0]} is missing")
    return values


def check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[str | int, ...]) -> None:
    """Raises CheckpointError for another dtype or shape. A letter in `shape` means any length except 0."""
    fits = array.ndim == len(shape) and all(
        n == s or (isinstance(s, str) and n > 0) for n, s in zip(array.shape, shape)
    )
    if array.dtype != dtype or not fits:
        expected = f"{np.dtype(dtype)} of shape ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise CheckpointError(f"{name} is {array.dtype} of shape {array.shape}; expected {expected}")
