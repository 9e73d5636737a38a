"""compressed-tensors, the form that llm-compressor and `llama3 quantize` write (quant_method "compressed-tensors").

It has three formats, and in each a scale for the whole matrix, a row ("channel"), a group of columns or a block:

  pack-quantized   weight_packed   I32, 4 or 8 codes in a word, that of the first column in its lowest bits. A code is
                                   the integer plus 2^(bits - 1), so that 0 is 8 or 128.
  int-quantized    weight          I8: the integers
  float-quantized  weight          F8_E4M3

In all three, weight = (integer - zero point) * scale, and symmetric schemes have no zero points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama3.checkpoint.quantised.parts import Parts, expect, get_block, get_object, get_size, one_value, trivial_order
from llama3.errors import CheckpointError
from llama3.model.quantised import QuantisedMatrix

CONFIG = "quantization_config"
FORMATS = ("pack-quantized", "int-quantized", "float-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")
UNUSED = ("kv_cache_scheme", "transform_config")  # they change the result, and must be null or empty


@dataclass(frozen=True)
class CompressedTensors:
    format: str  # one of FORMATS
    bits: int  # 4 or 8
    symmetric: bool
    strategy: str  # one of STRATEGIES
    block: tuple[int, int]  # rows and columns that share a scale; (1, group_size) for groups
    activations: str  # how servers round activations; "" if they do not

    @property
    def description(self) -> str:
        of = {"tensor": "matrix", "channel": "row", "group": f"{self.block[1]} columns"}.get(
            self.strategy, f"block of {self.block[0]} x {self.block[1]}"
        )
        kind = "float8" if self.format == "float-quantized" else f"int{self.bits}"
        zeros = "" if self.symmetric else " and a zero point"
        return f"compressed-tensors {self.format}, {kind}, a scale{zeros} for each {of}"

    def read(self, parts: Parts) -> QuantisedMatrix:
        n_out, n_in = parts.shape
        sizes = {"tensor": (n_out, n_in), "channel": (1, n_in)}
        group = sizes.get(self.strategy, self.block)
        groups = -(-n_out // group[0]), -(-n_in // group[1])
        flat: dict[str, list[tuple[int, ...]]] = {"tensor": [(), (1,)], "channel": [(n_out,)]}
        shapes = [groups, *flat.get(self.strategy, [])]  # of one number for each group
        scale = parts.take_scale("weight_scale", *shapes).reshape(groups)
        if self.format == "pack-quantized":
            codes, middle = self._packed(parts), 1 << (self.bits - 1)
        else:
            codes = parts.take("weight", ("I8",) if self.format == "int-quantized" else ("F8_E4M3",), parts.shape)
            middle = 0
        zero: np.ndarray | int = middle
        if "weight_zero_point" in parts or not self.symmetric:
            zero = self._zero(parts, groups, shapes, middle)
        if "weight_g_idx" in parts:
            trivial_order(parts, "weight_g_idx", group[1])
        for part in ("input_scale", "input_zero_point"):  # of activations, which stay float32 here
            if part in parts:
                parts.take(part, ("BF16", "F16", "F32", "I8", "F8_E4M3"))
        return QuantisedMatrix(parts.shape, self.bits, codes, group, scale, zero)

    def _packed(self, parts: Parts) -> np.ndarray:
        """The codes as bytes: a view of the file, if each row fills its last word."""
        (n_out, n_in), in_word = parts.shape, 32 // self.bits
        words = parts.take("weight_packed", ("I32",), (n_out, -(-n_in // in_word)))
        stated = parts.take("weight_shape", ("I64", "I32"), (2,))
        if tuple(stated.tolist()) != parts.shape:
            raise CheckpointError(
                f"tensor {parts.module + '.weight_shape'!r} says {tuple(stated.tolist())}; the config requires "
                f"{parts.shape}"
            )
        codes = words.view(np.uint8)  # the words are little-endian
        return codes if self.bits == 4 else np.ascontiguousarray(codes[:, :n_in])

    def _zero(
        self, parts: Parts, groups: tuple[int, int], shapes: list[tuple[int, ...]], middle: int
    ) -> np.ndarray | int:
        """The code of 0 for each group; one number if they are equal. Packed zero points are packed along the rows."""
        in_word = 32 // self.bits
        packed = (-(-groups[0] // in_word), groups[1])
        found = parts.take("weight_zero_point", ("I32", "I8") if middle else ("I8",), packed, *shapes)
        expected = [packed] if found.dtype == np.int32 else shapes
        if found.shape not in expected:
            raise CheckpointError(
                f"tensor {parts.module + '.weight_zero_point'!r} has the shape {found.shape}; expected {expected[0]}"
            )
        if found.dtype == np.int32:
            shifts = np.arange(0, 32, self.bits, dtype=np.int32)[:, None]  # one for each row of a word
            codes = found[:, None] >> shifts & ((1 << self.bits) - 1)
            return one_value(codes.reshape(-1, groups[1])[: groups[0]].astype(np.uint8))
        zero = found.astype(np.int16).reshape(groups) + middle
        if zero.min() < (0 if middle else -128) or zero.max() >= (1 << self.bits if middle else 128):
            name, values = f"{parts.module}.weight_zero_point", f"{found.min()} to {found.max()}"
            raise CheckpointError(f"tensor {name!r} holds {values}; expected integers of {self.bits} bits")
        return one_value(zero)


def from_config(fields: Mapping[str, Any]) -> CompressedTensors:
    """fields: the contents of quantization_config. Raises CheckpointError, naming the field that is wrong."""
    expect(fields, CONFIG, format=FORMATS, quantization_status=("compressed", "frozen", None))
    if "format" not in fields:
        raise CheckpointError(f"{CONFIG}.format is missing; expected one of {', '.join(FORMATS)}")
    for name in UNUSED:
        if fields.get(name):
            raise CheckpointError(f"{CONFIG}.{name} is {repr(fields[name])[:60]}; expected null: it is not read")
    if sparsity := fields.get("sparsity_config"):
        found = sparsity.get("format") if isinstance(sparsity, Mapping) else sparsity
        if found != "dense":
            raise CheckpointError(
                f"{CONFIG}.sparsity_config has the format {repr(found)[:60]}; expected 'dense', or null"
            )
    groups = get_object(fields, "config_groups", CONFIG)
    if len(groups) != 1:
        raise CheckpointError(f"{CONFIG}.config_groups has {len(groups)} groups; expected one scheme for all matrices")
    (key,) = groups
    where = f"{CONFIG}.config_groups.{key}"
    group = get_object(groups, key, f"{CONFIG}.config_groups")
    expect(group, where, targets=(["Linear"],), output_activations=(None,), format=(None, fields["format"]))
    return _scheme(fields["format"], get_object(group, "weights", where), f"{where}.weights", group)


def _scheme(format: str, w: Mapping[str, Any], where: str, group: Mapping[str, Any]) -> CompressedTensors:
    """w: the object that describes how weights are quantised."""
    floats, packed = format == "float-quantized", format == "pack-quantized"
    expect(w, where, type=("float",) if floats else ("int",), num_bits=(4, 8) if packed else (8,), dynamic=(False,))
    expect(w, where, strategy=STRATEGIES, symmetric=(True,) if floats else (True, False))
    expect(w, where, actorder=(None, False, "weight", "static"))  # "group" and "dynamic": columns in another order
    for name, expected in (("type", "float" if floats else "int"), ("num_bits", 8), ("strategy", "channel")):
        if name not in w:
            raise CheckpointError(f"{where}.{name} is missing; expected a value such as {expected!r}")
    strategy, block = w["strategy"], (1, 1)
    if strategy == "group":
        block = (1, get_size(w, "group_size", where))
    elif strategy == "block":
        block = get_block(w, "block_structure", where)
    rounded = group.get("input_activations")
    activations = ""
    if rounded is not None:
        above = where.removesuffix(".weights")
        rounded = get_object(group, "input_activations", above)
        expect(rounded, f"{above}.input_activations", num_bits=(8,), type=("int", "float"), dynamic=(False, True))
        kind = "float8" if rounded.get("type") == "float" else f"int{rounded.get('num_bits', 8)}"
        activations = f"{kind}, scaled {'at each step' if rounded.get('dynamic') else 'by constants in the file'}"
    return CompressedTensors(format, w["num_bits"], w.get("symmetric", True), strategy, block, activations)
