"""What GPTQ and AWQ share: a matrix on its side, (n_in, n_out), with a scale and a zero point for each group of inputs.

  qweight  I32                              the codes; in which of them a word holds, the two differ
  qzeros   I32 (groups, n_out * bits / 32)  the code of 0, a word for 8 or 4 columns
  scales   F16 (groups, n_out)

weight = (code - zero) * scale. Our matrices are (n_out, n_in), so everything is turned.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama3.checkpoint.quantised.parts import Parts, get_size


def describe(scheme: str, bits: int, group: int) -> str:
    of = "row" if group == -1 else f"{group} columns"
    return f"{scheme}, int{bits}, a scale and a zero point for each {of}"


def get_group(fields: Mapping[str, Any], where: str, *names: str) -> int:
    """How many columns of ours share a scale, -1 for all; names: of the field. Raises CheckpointError."""
    name = next((name for name in names if name in fields), names[0])
    return -1 if fields.get(name) == -1 else get_size(fields, name, where, 128)


def take_scale(parts: Parts, groups: int) -> np.ndarray:
    """(n_out, groups). Raises CheckpointError."""
    return np.ascontiguousarray(parts.take_scale("scales", (groups, parts.shape[0])).T)


def take_zeros(parts: Parts, groups: int, bits: int) -> np.ndarray:
    """The fields of each word, the lowest bits first: (groups, words, 32 / bits) uint8. Raises CheckpointError."""
    words = parts.take("qzeros", ("I32",), (groups, parts.shape[0] * bits // 32))
    shifts = np.arange(0, 32, bits, dtype=np.int32)
    return (words[:, :, None] >> shifts & (1 << bits) - 1).astype(np.uint8)
