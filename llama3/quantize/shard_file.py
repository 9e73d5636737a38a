"""Writes one safetensors file of the new checkpoint: its header, then the data of each tensor, a block at a time."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llama3.checkpoint.safetensors_file import DTYPES
from llama3.errors import CheckpointError
from llama3.model.threads import share
from llama3.quantize.packing import pack, packed_bytes
from llama3.quantize.plan import Shard, is_quantised
from llama3.quantize.scales import quantise
from llama3.quantize.source import Tensor

TILE = 1 << 16  # entries that a thread rounds at once: they and what is computed from them fit into its cache

Report = Callable[[int], None]  # takes how many more bytes of the source are done


def write_shard(path: Path, shard: Shard, bits: int, width: int | None, report: Report) -> None:
    """Write the file under a temporary name, and give it its own when all of it is on the disk.

    Raises OSError, and CheckpointError for a weight that is NaN or infinite. The incomplete file is then deleted.
    """
    incomplete = path.with_name(path.name + ".incomplete")
    try:
        with incomplete.open("wb") as file:
            file.write(shard.header)
            for tensor in shard.sources:
                begin = shard.begins.get(tensor.name)
                if begin is not None:
                    _copy(file, tensor, begin, report)
                else:
                    _write_matrix(file, tensor, shard, bits, width, report)
            file.flush()
            os.fsync(file.fileno())
    except Exception:
        incomplete.unlink(missing_ok=True)
        raise
    incomplete.replace(path)


def _copy(file: BinaryIO, tensor: Tensor, begin: int, report: Report) -> None:
    for first, block in tensor.blocks():
        _check_finite(tensor, first, block)
        file.seek(begin + first * (tensor.nbytes // tensor.shape[0]))
        file.write(block.view(np.uint8).data)
        report(block.nbytes)


def _write_matrix(file: BinaryIO, tensor: Tensor, shard: Shard, bits: int, width: int | None, report: Report) -> None:
    """Round a matrix, and write codes, scales and shape."""
    assert is_quantised(tensor)
    n_out, n_in = tensor.shape
    row = packed_bytes(n_in, bits)
    scales = np.empty((n_out, n_in // width if width else 1), DTYPES[tensor.dtype])
    for first, block in tensor.blocks():
        packed = np.empty((len(block), row), np.uint8)
        height = max(1, TILE // n_in)
        share(partial(_round_rows, tensor, first, block, bits, width or n_in, packed, scales), len(block), height)
        file.seek(shard.begins[f"{tensor.name}_packed"] + first * row)
        file.write(packed.data)
        report(block.nbytes)
    file.seek(shard.begins[f"{tensor.name}_scale"])
    file.write(scales.view(np.uint8).data)
    file.seek(shard.begins[f"{tensor.name}_shape"])
    file.write(np.array(tensor.shape, "<i8").tobytes())


def _round_rows(
    tensor: Tensor,
    first: int,
    block: np.ndarray,
    bits: int,
    width: int,
    packed: np.ndarray,
    scales: np.ndarray,
    tiles: Iterator[slice],
) -> None:
    """Fill the rows of `packed`, which are those of `block`, and of `scales`, which are those of the whole matrix."""
    for rows in tiles:
        w = block[rows].astype(np.float32)
        _check_finite(tensor, first + rows.start, w)
        codes, found = quantise(w, bits, width, scales.dtype)
        packed[rows] = pack(codes, bits)
        scales[first + rows.start : first + rows.stop] = found


def _check_finite(tensor: Tensor, first: int, rows: np.ndarray) -> None:
    if not np.isfinite(rows).all():
        row = first + int(np.argmax(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinity in row {row}; expected finite weights: "
            "download or save the model again"
        )
