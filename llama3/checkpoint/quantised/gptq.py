"""GPTQ as AutoGPTQ and GPTQModel write it (quant_method "gptq"), without act-order. The formula is in sideways.py.

  qweight  I32 (n_in * bits / 32, n_out)  a word holds the codes of 8 or 4 rows below each other, lowest bits first
  qzeros                                  in order, lowest bits first; format "gptq" stores them minus 1

A column of words has the bytes of our layout already, so the matrix is turned by moving words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama3.checkpoint.quantised.parts import Parts, expect, one_value, trivial_order
from llama3.checkpoint.quantised.sideways import describe, get_group, take_scale, take_zeros
from llama3.errors import CheckpointError
from llama3.model.quantised import QuantisedMatrix

CONFIG = "quantization_config"


@dataclass(frozen=True)
class Gptq:
    bits: int  # 4 or 8
    group: int  # columns that share a scale; -1: all
    minus_1: bool  # whether zeros are stored minus 1
    in_order: bool  # whether the config says that columns are in order, so that the file need not
    symmetric: bool  # whether the config says that every zero is in the middle of the codes
    activations: str = ""  # they are not rounded

    @property
    def description(self) -> str:
        return describe("GPTQ", self.bits, self.group)

    def read(self, parts: Parts) -> QuantisedMatrix:
        (n_out, n_in), in_word = parts.shape, 32 // self.bits
        width = n_in if self.group == -1 else self.group
        groups = -(-n_in // width)
        for name, n in (("outputs", n_out), ("inputs", n_in)):
            if n % in_word:
                raise CheckpointError(f"{parts.module} has {n} {name}; GPTQ needs a multiple of {in_word}")
        words = parts.take("qweight", ("I32",), (n_in // in_word, n_out))
        codes = np.ascontiguousarray(words.T).view(np.uint8)  # little-endian: the lowest bits come first
        scale, zeros = take_scale(parts, groups), self._zeros(parts, groups)
        if "g_idx" in parts or not self.in_order:
            trivial_order(parts, "g_idx", width)
        parts.take_zero("bias", (n_out,))  # AutoGPTQ writes one even where the model has none
        return QuantisedMatrix(parts.shape, self.bits, codes, (1, width), scale, zeros)

    def _zeros(self, parts: Parts, groups: int) -> np.ndarray | int:
        """The code of 0, (n_out, groups) uint8, or one number if they are equal."""
        highest = (1 << self.bits) - 1
        stored = take_zeros(parts, groups, self.bits).reshape(groups, -1)
        if self.minus_1 and stored.max() == highest:
            # Some programs read this as 0 and some as 16.
            raise CheckpointError(
                f"tensor {parts.module + '.qzeros'!r} holds {highest}, which plus 1 is no code of {self.bits} bits"
            )
        zeros, middle = np.ascontiguousarray(stored.T) + np.uint8(self.minus_1), 1 << (self.bits - 1)
        others = zeros[zeros != middle]
        if self.symmetric and others.size:
            raise CheckpointError(
                f"tensor {parts.module + '.qzeros'!r} stands for a zero of {others[0]}, but {CONFIG}.sym is true; "
                f"expected {middle}: {CONFIG}.checkpoint_format may be the wrong one of gptq and gptq_v2"
            )
        return one_value(zeros)


def from_config(fields: Mapping[str, Any]) -> Gptq:
    """fields: the contents of quantization_config. Raises CheckpointError, naming the field that is wrong.

    desc_act may be true: what counts is the order in each matrix's g_idx, which must then be there.
    """
    expect(fields, CONFIG, bits=(4, 8), pack_dtype=("int32", None), is_marlin_format=(False, None))
    if "bits" not in fields:
        raise CheckpointError(f"{CONFIG}.bits is missing; expected 4 or 8")
    # GPTQModel calls it format, AutoGPTQ checkpoint_format. Older files have neither.
    expect(fields, CONFIG, format=("gptq", "gptq_v2"), checkpoint_format=("gptq", "gptq_v2"))
    form = fields.get("checkpoint_format", fields.get("format", "gptq"))
    if fields.get("format", form) != form:
        raise CheckpointError(f"{CONFIG}.format is {fields['format']!r}, but checkpoint_format {form!r}: expected one")
    for name in ("dynamic", "rotation", "adapter"):  # rules by module; a rotation of activations; a LoRA inside
        if fields.get(name):
            raise CheckpointError(f"{CONFIG}.{name} is {repr(fields[name])[:60]}; expected null: it is not read")
    in_order, symmetric = not fields.get("desc_act"), fields.get("sym") is True
    return Gptq(fields["bits"], get_group(fields, CONFIG, "group_size"), form == "gptq", in_order, symmetric)
