"""Plans the new files before anything is written: which tensors, in which shard, at which byte.

All shapes are known in advance, so the header of a safetensors file can be written first, and the data after it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llama3.quantize.packing import packed_bytes
from llama3.quantize.source import Tensor

SHARD = 5_000_000_000  # bytes of data, unless a single matrix has more
ITEMSIZE = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Part:
    """A tensor of a new file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A new file: the tensors of the source that go into it, and what becomes of them."""

    name: str
    sources: tuple[Tensor, ...]
    header: bytes
    begins: dict[str, int]  # tensor -> the byte of the file at which its data begins
    size: int  # bytes of the whole file


def is_quantised(tensor: Tensor) -> bool:
    """Only the matrices of the layers are: neither embedding, output and norms, as is usual for such checkpoints."""
    return tensor.name.endswith("_proj.weight")


def parts_of(tensor: Tensor, bits: int, width: int | None) -> list[Part]:
    """What becomes of a tensor of the source: itself, or codes, scales and shape."""
    if not is_quantised(tensor):
        return [Part(tensor.name, tensor.dtype, tensor.shape)]
    n_out, n_in = tensor.shape
    return [
        Part(f"{tensor.name}_shape", "I64", (2,)),
        Part(f"{tensor.name}_packed", "I32", (n_out, packed_bytes(n_in, bits) // 4)),
        Part(f"{tensor.name}_scale", tensor.dtype, (n_out, n_in // width if width else 1)),
    ]


def plan(tensors: Iterable[Tensor], bits: int, width: int | None) -> list[Shard]:
    """Distributes the tensors over shards, in the given order. What becomes of one tensor stays together."""
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        n_bytes = sum(part.nbytes for part in parts_of(tensor, bits, width))
        if groups[-1] and filled + n_bytes > SHARD:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += n_bytes
    n = len(groups)
    names = ["model.safetensors"] if n == 1 else [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    return [_shard(name, group, bits, width) for name, group in zip(names, groups)]


def _shard(name: str, tensors: list[Tensor], bits: int, width: int | None) -> Shard:
    """Large dtypes come first, so that every tensor is aligned to its own."""
    parts = sorted(
        (part for tensor in tensors for part in parts_of(tensor, bits, width)), key=lambda part: -ITEMSIZE[part.dtype]
    )
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for part in parts:
        begins[part.name] = end
        end += part.nbytes
        entries[part.name] = {
            "dtype": part.dtype,
            "shape": part.shape,
            "data_offsets": [begins[part.name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    begins = {part: len(header) + begin for part, begin in begins.items()}
    return Shard(name, tuple(tensors), header, begins, len(header) + end)


def index(shards: list[Shard]) -> dict[str, object]:
    """The contents of model.safetensors.index.json."""
    total = sum(shard.size - len(shard.header) for shard in shards)
    weight_map = {name: shard.name for shard in shards for name in shard.begins}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}
