"""FP8 as AutoFP8 and transformers write it (quant_method "fp8"): the matrix in F8_E4M3, and scales beside it.

weight = code * scale. AutoFP8 has one `weight_scale` for a matrix. With `weight_block_size` [128, 128], there is one
for each block of 128 x 128, named `weight_scale_inv`; it is multiplied all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama3.checkpoint.quantised.parts import Parts, expect, get_block
from llama3.checkpoint.safetensors_file import FLOATS
from llama3.model.quantised import QuantisedMatrix

CONFIG = "quantization_config"


@dataclass(frozen=True)
class Fp8:
    block: tuple[int, int] | None  # rows and columns that share a scale; None: the whole matrix
    activations: str  # how servers round activations

    @property
    def description(self) -> str:
        of = "matrix" if self.block is None else f"block of {self.block[0]} x {self.block[1]}"
        return f"fp8, float8, a scale for each {of}"

    def read(self, parts: Parts) -> QuantisedMatrix:
        codes = parts.take("weight", ("F8_E4M3",), parts.shape)
        if "input_scale" in parts:
            parts.take("input_scale", FLOATS)  # of activations, which stay float32 here
        if self.block is None:
            scale = parts.take_scale("weight_scale", (), (1,), (1, 1)).reshape(1, 1)
            return QuantisedMatrix(parts.shape, 8, codes, parts.shape, scale)
        groups = -(-parts.shape[0] // self.block[0]), -(-parts.shape[1] // self.block[1])
        return QuantisedMatrix(parts.shape, 8, codes, self.block, parts.take_scale("weight_scale_inv", groups))


def from_config(fields: Mapping[str, Any]) -> Fp8:
    """fields: the contents of quantization_config. Raises CheckpointError, naming the field that is wrong."""
    expect(fields, CONFIG, activation_scheme=("dynamic", "static"), fmt=("e4m3", None), kv_cache_scheme=(None,))
    expect(fields, CONFIG, scale_fmt=(None, "float"))
    size = "weight_block_size"
    block = None if fields.get(size) is None else get_block(fields, size, CONFIG)
    dynamic = fields.get("activation_scheme", "dynamic") == "dynamic"
    return Fp8(block, f"float8, scaled {'at each step' if dynamic else 'by constants in the file'}")
