"""AWQ as AutoAWQ writes it (quant_method "awq", version "gemm"), 4 bits. The formula is in sideways.py.

  qweight  I32 (n_in, n_out / 8)  a word holds the codes of 8 columns side by side, in the order ORDER
  qzeros                          in the same order

When the matrix is turned, two codes that are neighbours in a row of ours are put into one byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama3.checkpoint.quantised.parts import Parts, expect, one_value
from llama3.checkpoint.quantised.sideways import describe, get_group, take_scale, take_zeros
from llama3.errors import CheckpointError
from llama3.model.quantised import QuantisedMatrix

CONFIG = "quantization_config"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the columns of a word's 4-bit fields, the lowest first


@dataclass(frozen=True)
class Awq:
    group: int  # columns of ours that share a scale; -1: all
    activations: str = ""  # they are not rounded

    @property
    def description(self) -> str:
        return describe("AWQ", 4, self.group)

    def read(self, parts: Parts) -> QuantisedMatrix:
        n_out, n_in = parts.shape
        width = n_in if self.group == -1 else self.group
        if n_out % 8 or n_in % 2 or n_in % width:
            raise CheckpointError(
                f"{parts.module} has the shape {parts.shape}; AWQ needs a multiple of 8 outputs, and of {width} inputs"
            )
        codes = turn(parts.take("qweight", ("I32",), (n_in, n_out // 8)))
        scale = take_scale(parts, n_in // width)
        stored = take_zeros(parts, n_in // width, 4)
        zeros = np.empty_like(stored)
        zeros[:, :, ORDER] = stored
        zero = one_value(np.ascontiguousarray(zeros.reshape(-1, n_out).T))
        parts.take_zero("bias", (n_out,))
        return QuantisedMatrix(parts.shape, 4, codes, (1, width), scale, zero)


def turn(words: np.ndarray) -> np.ndarray:
    """qweight (n_in, n_out / 8) int32 -> (n_out, n_in / 2) uint8, the code of the even column in the lower half."""
    n_in, eighth = words.shape
    nibbles = words.view(np.uint8).reshape(n_in // 2, 2, eighth, 4)  # two fields in a byte; the words are little-endian
    even, odd = nibbles[:, 0], nibbles[:, 1]  # (n_in / 2, n_out / 8, 4) each
    out = np.empty((eighth, 8, n_in // 2), np.uint8)
    for place, column in enumerate(ORDER):
        a, b = even[:, :, place // 2], odd[:, :, place // 2]
        both = a >> 4 | b & 0xF0 if place % 2 else a & 15 | b << 4
        out[:, column] = both.T
    return out.reshape(8 * eighth, n_in // 2)


def from_config(fields: Mapping[str, Any]) -> Awq:
    """fields: the contents of quantization_config. Raises CheckpointError, naming the field that is wrong."""
    for name in ("bits", "w_bit"):  # AutoAWQ has used both names
        expect(fields, CONFIG, **{name: (4,)})
    for name in ("version", "format", "checkpoint_format"):
        found = fields.get(name, "gemm")
        if not isinstance(found, str) or found.lower() != "gemm":
            raise CheckpointError(f"{CONFIG}.{name} is {found!r}; expected 'gemm'")
    expect(fields, CONFIG, zero_point=(True,), do_fuse=(False, None))
    return Awq(get_group(fields, CONFIG, "group_size", "q_group_size"))
