"""Which scheme config.json names, and the matrices of a checkpoint that are quantised in it."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from llama3.checkpoint.quantised import awq, bitsandbytes, compressed_tensors, fp8, gptq
from llama3.checkpoint.quantised.parts import NAMES, Parts
from llama3.checkpoint.safetensors_file import FLOATS
from llama3.errors import CheckpointError
from llama3.model.quantised import QuantisedMatrix

CONFIG = "quantization_config"
MODULE = re.compile(r"(lm_head|model\.layers\.\d+\.(?:self_attn|mlp)\.[a-z]+_proj)\.(.+)")


class Scheme(Protocol):
    """How the matrices of one checkpoint are quantised."""

    @property
    def description(self) -> str:
        """What `llama3 info` says of it."""

    @property
    def activations(self) -> str:
        """How programs that serve such files also round activations, which this project does not; "" if they do not."""

    def read(self, parts: Parts) -> QuantisedMatrix:
        """One matrix. Raises CheckpointError, naming the tensor that is wrong."""


READERS: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "compressed-tensors": compressed_tensors.from_config,
    "fp8": fp8.from_config,
    "awq": awq.from_config,
    "gptq": gptq.from_config,
    "bitsandbytes": bitsandbytes.from_config,
}


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """config: the contents of config.json -> its scheme; None if the weights are not quantised.

    Raises CheckpointError, naming the field that is wrong and what would be read.
    """
    fields = config.get(CONFIG)
    if fields is None or fields == {}:
        return None
    if not isinstance(fields, Mapping):
        raise CheckpointError(f"{CONFIG} is {repr(fields)[:60]}; expected an object")
    old = "load_in_4bit" in fields or "load_in_8bit" in fields  # bitsandbytes once wrote no quant_method
    method = fields.get("quant_method", "bitsandbytes" if old else None)
    if not isinstance(method, str) or method not in READERS:
        raise CheckpointError(f"{CONFIG}.quant_method is {method!r}; expected {', '.join(READERS)}")
    return READERS[method](fields)


def read_matrices(
    scheme: Scheme | None, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The same tensors, with those of each quantised matrix replaced by one `QuantisedMatrix`, named as the plain one.

    shapes: of each tensor that the config requires. Raises CheckpointError, naming the tensor that is wrong.
    """
    if scheme is None:
        for name, tensor in tensors.items():
            if NAMES[tensor.dtype] not in FLOATS:
                raise CheckpointError(
                    f"tensor {name!r} is {NAMES[tensor.dtype]}; expected {', '.join(FLOATS)}: there is no {CONFIG} in "
                    "config.json that says how to read it"
                )
        return dict(tensors)
    out: dict[str, Any] = {}
    matrices: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        found = MODULE.fullmatch(name)
        if found and f"{found[1]}.weight" in shapes:
            matrices.setdefault(found[1], {})[found[2]] = tensor
        else:
            out[name] = tensor
    quantised = 0
    for module, found_parts in matrices.items():
        name = f"{module}.weight"
        if found_parts.keys() == {"weight"} and NAMES[found_parts["weight"].dtype] in FLOATS:
            out[name] = found_parts["weight"]  # left as it was, as the output matrix often is
            continue
        n_out, n_in = shapes[name]
        parts = Parts(module, (n_out, n_in), found_parts)
        out[name] = scheme.read(parts)
        parts.finish()
        quantised += 1
    if not quantised:
        raise CheckpointError(f"no matrix is quantised, but config.json has a {CONFIG} ({scheme.description})")
    return out
