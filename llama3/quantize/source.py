"""Reads the tensors of a checkpoint a block at a time, so that memory holds one block and not the model.

The blocks are read, not mapped: pages of a mapped file count as memory of the process.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama3.checkpoint import Checkpoint, load_folder
from llama3.checkpoint.json_file import read_json_file
from llama3.checkpoint.names import HUGGING_FACE, shapes
from llama3.checkpoint.safetensors_file import DTYPES
from llama3.errors import CheckpointError

BLOCK = 1 << 26  # bytes that are read at once, at least a row


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is, and what it is."""

    name: str
    file: Path
    dtype: str  # the file's name of it: "BF16", "F16" or "F32"
    shape: tuple[int, ...]
    begin: int  # the byte of the file at which its data begins

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first row, rows) for block after block; an entry of a vector counts as a row.

        Raises CheckpointError for a file that is cut short meanwhile.
        """
        row = self.nbytes // self.shape[0]
        step = max(1, BLOCK // row)
        for first in range(0, self.shape[0], step):
            n_rows = min(step, self.shape[0] - first)
            data = np.fromfile(self.file, np.uint8, n_rows * row, offset=self.begin + first * row)
            if data.size < n_rows * row:
                raise CheckpointError(f"{self.file}: it has become shorter while it was read")
            yield first, data.view(DTYPES[self.dtype]).reshape(n_rows, *self.shape[1:])


def open_source(folder: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The checked checkpoint, and its tensors in the order of the model. Raises CheckpointError, as load_folder does.

    Also refused are checkpoints that are quantised already, and those with Meta's names.
    """
    config = folder / "config.json"
    if config.is_file() and read_json_file(config).get("quantization_config"):
        raise CheckpointError(f"{folder} is quantised already (config.json says so); expected a bf16, f16 or f32 model")
    checkpoint = load_folder(folder)
    if checkpoint.layout != HUGGING_FACE:
        raise CheckpointError(
            f"{folder} has Meta's tensor names, and compressed-tensors needs Hugging Face's: download the same model "
            "in Hugging Face's form with `llama3 download`"
        )
    found = {tensor.name: tensor for file in checkpoint.files for tensor in _tensors(file)}
    return checkpoint, {name: found[name] for name in shapes(checkpoint.config, HUGGING_FACE)}


def _tensors(file: Path) -> Iterator[Tensor]:
    """The tensors in a file's header, which load_folder has checked."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            begin = 8 + length + entry["data_offsets"][0]
            yield Tensor(name, file, entry["dtype"], tuple(entry["shape"]), begin)
