"""bitsandbytes in 4 bits (quant_method "bitsandbytes"), type NF4: each code stands for one of 16 fixed numbers.

  weight                                  U8 (n / 2, 1): all codes, row by row; the even column in the upper half
  weight.quant_map                        F32 (16): the numbers
  weight.absmax                           F32, one for each block of 64 codes: weight = number * absmax
  weight.quant_state.bitsandbytes__nf4    U8: a JSON object with the sizes

With double quantisation, absmax is quantised as well: U8, where code c stands for
`nested_quant_map[c] * nested_absmax[block of 256] + nested_offset`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama3.checkpoint.quantised.parts import Parts, expect, get_size
from llama3.errors import CheckpointError
from llama3.model.quantised import QuantisedMatrix

CONFIG, STATE = "quantization_config", "weight.quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Nf4:
    activations: str = ""  # they are not rounded
    description = "bitsandbytes, NF4, a scale for each block of columns"

    def read(self, parts: Parts) -> QuantisedMatrix:
        n_out, n_in = parts.shape
        parts.refuse("weight.quant_state.bitsandbytes__fp4", "says FP4; expected NF4")
        state, where = _state(parts), f"{parts.module}.{STATE}"
        expect(state, where, quant_type=("nf4",), shape=(list(parts.shape),))
        size = get_size(state, "blocksize", where)
        if n_in % size or n_in % 2:
            raise CheckpointError(f"{parts.module} has {n_in} inputs; expected a multiple of the block size, {size}")
        stored = parts.take("weight", ("U8",), (n_out * n_in // 2, 1), (1, n_out * n_in // 2), (n_out * n_in // 2,))
        codes = (stored << 4 | stored >> 4).reshape(n_out, n_in // 2)  # the even column into the lower half
        n = n_out * n_in // size
        scale = (
            _nested(parts, state, where, n) if "nested_blocksize" in state else parts.take_scale("weight.absmax", (n,))
        )
        table = parts.take_scale("weight.quant_map", (16,)).astype(np.float32)
        scale = scale.reshape(n_out, n_in // size)
        return QuantisedMatrix(parts.shape, 4, codes, (1, size), scale, table=table)


def _state(parts: Parts) -> Mapping[str, Any]:
    found = parts.take(STATE, ("U8",)).tobytes()
    try:
        state = json.loads(found)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise CheckpointError(f"tensor {parts.module + '.' + STATE!r} holds no JSON object")
    return state


def _nested(parts: Parts, state: Mapping[str, Any], where: str, n: int) -> np.ndarray:
    """The scales of double quantisation, (n,) float32."""
    codes = parts.take("weight.absmax", ("U8",), (n,))
    size = get_size(state, "nested_blocksize", where)
    numbers = parts.take_scale("weight.nested_quant_map", (256,)).astype(np.float32)
    largest = parts.take_scale("weight.nested_absmax", (-(-n // size),)).astype(np.float32)
    offset: Any = state.get("nested_offset")
    if type(offset) not in (int, float) or not -1e30 < offset < 1e30:  # neither NaN nor infinity
        raise CheckpointError(f"{where}.nested_offset is {repr(offset)[:60]}; expected a number")
    return numbers[codes] * largest[np.arange(n) // size] + np.float32(offset)


def from_config(fields: Mapping[str, Any]) -> Nf4:
    """fields: the contents of quantization_config. Raises CheckpointError, naming the field that is wrong."""
    for name, value in (("load_in_8bit", False), ("_load_in_8bit", False)):
        expect(fields, CONFIG, **{name: (value, None)})
    if fields.get("load_in_4bit", fields.get("_load_in_4bit")) is not True:
        raise CheckpointError(f"{CONFIG}.load_in_4bit is {fields.get('load_in_4bit')!r}; expected true")
    if "bnb_4bit_quant_type" not in fields:
        raise CheckpointError(f"{CONFIG}.bnb_4bit_quant_type is missing; expected 'nf4'")
    expect(fields, CONFIG, bnb_4bit_quant_type=("nf4",), bnb_4bit_quant_storage=("uint8", None))
    return Nf4()
