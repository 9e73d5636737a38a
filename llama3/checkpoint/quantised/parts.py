"""The tensors of one quantised matrix: each is taken once, and must have the dtype and the shape that the scheme says.

A matrix `model.layers.0.mlp.up_proj` has several tensors: its name, a dot, and what is called the part here, such as
`weight_packed` or `weight_scale`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from llama3.checkpoint.safetensors_file import DTYPES, FLOATS
from llama3.errors import CheckpointError

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Parts:
    """The tensors of one matrix by part; shape: (n_out, n_in), which config.json requires."""

    def __init__(self, module: str, shape: tuple[int, int], tensors: Mapping[str, np.ndarray]):
        self.module, self.shape = module, shape
        self._left = dict(tensors)

    def __contains__(self, part: str) -> bool:
        return part in self._left

    def take(self, part: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> np.ndarray:
        """The tensor. dtypes: those it may have, as safetensors names them; shapes: those it may have (none: any).

        Raises CheckpointError if it is missing or is another one.
        """
        name = f"{self.module}.{part}"
        if part not in self._left:
            there = ", ".join(sorted(self._left)) or "nothing else"
            raise CheckpointError(f"tensor {name!r} is missing, which quantization_config calls for; found: {there}")
        tensor = self._left.pop(part)
        if NAMES[tensor.dtype] not in dtypes:
            raise CheckpointError(
                f"tensor {name!r} is {NAMES[tensor.dtype]}; expected {' or '.join(dtypes)}, as quantization_config says"
            )
        if shapes and tensor.shape not in shapes:
            raise CheckpointError(
                f"tensor {name!r} has the shape {tensor.shape}; expected {' or '.join(map(str, shapes))} for a matrix "
                f"of {self.shape}"
            )
        return tensor

    def take_scale(self, part: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """A tensor of BF16, F16 or F32 without NaN and infinity."""
        scale = self.take(part, FLOATS, *shapes)
        if not np.isfinite(scale).all():
            raise CheckpointError(f"tensor {self.module + '.' + part!r} holds a number that is not finite")
        return scale

    def take_zero(self, part: str, *shapes: tuple[int, ...]) -> np.ndarray | None:
        """What `part` holds if it is there and not all zeros: a bias, which Llama 3 does not have, is refused."""
        if part not in self._left:
            return None
        tensor = self.take(part, FLOATS, *shapes)
        if tensor.any():
            raise CheckpointError(f"tensor {self.module + '.' + part!r} is not zero; Llama 3 has no bias")
        return tensor

    def refuse(self, part: str, why: str) -> None:
        """Raises CheckpointError if there is such a tensor."""
        if part in self._left:
            raise CheckpointError(f"tensor {self.module + '.' + part!r} {why}")

    def finish(self) -> None:
        """Raises CheckpointError for a tensor that nobody took."""
        if self._left:
            name = f"{self.module}.{min(self._left)}"
            raise CheckpointError(f"tensor {name!r} is not part of the scheme that quantization_config describes")


def trivial_order(parts: Parts, part: str, group: int) -> None:
    """Take the tensor that says in which group each column is. Raises CheckpointError unless groups follow each other.

    Anything else is act-order: the columns of a group do not lie side by side.
    """
    n_in = parts.shape[1]
    order = parts.take(part, ("I32", "I64"), (n_in,))
    if not np.array_equal(order, np.arange(n_in) // group):
        raise CheckpointError(
            f"tensor {parts.module + '.' + part!r} puts columns into groups in another order (act-order); "
            f"expected column j in group j // {group}"
        )


def one_value(array: np.ndarray) -> np.ndarray | int:
    """An array of integers, or the one integer that all of its entries are."""
    first = int(array.flat[0])
    return first if bool((array == first).all()) else array


def expect(fields: Mapping[str, Any], where: str, **allowed: tuple[Any, ...]) -> None:
    """Raises CheckpointError unless each field is absent or has one of the values allowed. The first is the usual one.

    where: the name of the object that holds the fields, "quantization_config" or a part of it.
    """
    for name, values in allowed.items():
        found = fields.get(name, values[0])
        if not any(found == value and type(found) is type(value) for value in values):
            expected = " or ".join(repr(value) if value is not None else "null" for value in values)
            raise CheckpointError(f"{where}.{name} is {repr(found)[:60]}; expected {expected}")


def get_object(fields: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """A field that must be an object. Raises CheckpointError."""
    found = fields.get(name)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where}.{name} is {repr(found)[:60]}; expected an object")
    return found


def get_size(fields: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    """A positive number of columns. Raises CheckpointError."""
    found = fields.get(name, default)
    if not _is_size(found):
        raise CheckpointError(f"{where}.{name} is {repr(found)[:60]}; expected a positive number below 2^31")
    return int(found)


def get_block(fields: Mapping[str, Any], name: str, where: str) -> tuple[int, int]:
    """The rows and the columns of a block. Raises CheckpointError."""
    found = fields.get(name)
    if not (isinstance(found, list) and len(found) == 2 and all(map(_is_size, found))):
        raise CheckpointError(f"{where}.{name} is {repr(found)[:60]}; expected two numbers, such as [128, 128]")
    return found[0], found[1]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31  # NumPy divides indices by it
