"""Reads one safetensors file: checks its header, and returns every tensor as a view of the memory-mapped file.

The layout (https://huggingface.co/docs/safetensors) has three parts: 8 bytes with the header's length, little-endian;
the header, a JSON object {name: {"dtype", "shape", "data_offsets": [begin, end]}}, padded with spaces; and the data,
which the tensors fill without a gap. Nothing is read in advance: the operating system loads a page of the file when it
is first used. Only tensors that are not aligned to their dtype are copied.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from llama3.errors import CheckpointError
from llama3.lfs_pointer import LFS_POINTER, is_lfs_pointer

FLOATS = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
# Those of quantised checkpoints, too: codes, packed codes, shapes, JSON as bytes.
DTYPES = FLOATS | {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
}
MAX_HEADER = 100_000_000  # bytes, the format's own limit


def open_safetensors(path: Path, dtypes: Mapping[str, np.dtype[Any]] = FLOATS) -> dict[str, np.ndarray]:
    """Every tensor of the file by name, in the file's own dtype, which must be one of `dtypes`. Views are read-only.

    Raises CheckpointError, with the file and the tensor that is wrong, unless header and data agree.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if is_lfs_pointer(file.read(64)):
                raise CheckpointError(f"{path}: {LFS_POINTER}")
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{path}: {_cut_short(size)}: it ends inside its header")
            tensors = _tensors(path, _parse(path, file.read(length)), size - 8 - length, dtypes)
        with safe_open(path, "np"):  # the format's own library must accept the file as well
            pass
        data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + length))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors file: {error}") from error
    # The format allows data that is not aligned to its dtype, but BLAS does not. Such tensors are copied.
    return {
        name: np.require(data[begin:end].view(dtype).reshape(shape), requirements="A")
        for name, (dtype, shape, begin, end) in tensors.items()
    }


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is in it twice")
        return fields

    try:
        if header[:1] != b"{":
            raise ValueError("it must begin with '{'")
        fields: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON: {error}") from error
    return fields


def _tensors(
    path: Path, header: dict[str, Any], size: int, dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int, int]]:
    """(dtype, shape, begin, end) of each tensor. Raises CheckpointError unless they fill the `size` bytes exactly."""
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header must map names to strings")
    tensors = {}
    for name, entry in header.items():
        where = f"{path}: tensor {name!r}"
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
            raise CheckpointError(f"{where}: expected the fields dtype, shape and data_offsets")
        if entry["dtype"] not in list(dtypes):
            raise CheckpointError(f"{where}: dtype is {entry['dtype']!r}; expected {', '.join(dtypes)}")
        dtype, shape, offsets = dtypes[entry["dtype"]], entry["shape"], entry["data_offsets"]
        # An empty array, too, has a shape that NumPy can hold.
        if not _naturals(shape) or (0 in shape and math.prod(n or 1 for n in shape) >= 2**60):
            raise CheckpointError(f"{where}: shape is {_short(shape)}; expected a list of natural numbers below 2^60")
        if not _naturals(offsets) or len(offsets) != 2:
            raise CheckpointError(f"{where}: data_offsets is {_short(offsets)}; expected [begin, end]")
        needed = math.prod(shape) * dtype.itemsize
        if offsets[1] - offsets[0] != needed:
            raise CheckpointError(
                f"{where}: data_offsets is {offsets}, but {entry['dtype']} {shape} takes {needed} bytes"
            )
        tensors[name] = (dtype, tuple(shape), *offsets)
    if not any(end for _, _, _, end in tensors.values()):
        raise CheckpointError(f"{path}: holds no tensors, or only empty ones")
    filled = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != filled:
            fault = "there is a gap before it" if begin > filled else "it overlaps another tensor"
            raise CheckpointError(f"{path}: tensor {name!r}: data_offsets begin at {begin}, expected {filled}: {fault}")
        filled = end
    if filled > size:
        raise CheckpointError(f"{path}: {_cut_short(size)} of data, and the tensors take {filled}")
    if filled < size:
        raise CheckpointError(f"{path}: {size - filled} bytes follow the last tensor; expected none")
    return tensors


def _cut_short(size: int) -> str:
    return f"the file is cut short or is not a safetensors file: it has {size} bytes"


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)  # type(): True is an int


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 60 else text[:57] + "..."
