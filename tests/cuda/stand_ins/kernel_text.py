"""What a kernel's source says about its arguments, for the stand-ins that check a launch."""

import re
from dataclasses import dataclass

import numpy as np

from tests.cuda.emulator.build import DEFINITION
from tests.cuda.stand_ins.card import MAX_SHARED, StandInError

TYPES = {
    "bf16": "bfloat16", "float": "float32", "double": "float64", "int": "int32", "unsigned": "uint32",
    "unsigned int": "uint32", "long long": "int64", "unsigned long long": "uint64", "uint64": "uint64",
    "Int8": "uint8", "Fp8": "uint8", "Int4": "uint8",
}  # fmt: skip
TYPEDEF = re.compile(r"^typedef (.+) (\w+);", re.MULTILINE)
FILE = re.compile(r'#line 1 "(.+)"')


@dataclass(frozen=True)
class KernelText:
    file: str
    name: str
    parameters: tuple[str, ...]  # "bfloat16*", "int32"
    max_threads: int

    def check(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, limit: int) -> None:
        """limit: the bytes of dynamic shared memory that were asked for in advance."""
        threads = int(np.prod(block))
        if not 1 <= threads <= self.max_threads or block[2] > 64:
            raise StandInError(f"{self.name}: a block of {block}; its launch bounds say {self.max_threads} threads")
        if not (1 <= grid[0] < 2**31 and 1 <= grid[1] < 2**16 and 1 <= grid[2] < 2**16):
            raise StandInError(f"{self.name}: no GPU takes a grid of {grid}")
        if shared > max(limit, 48 * 1024) or shared > MAX_SHARED:
            raise StandInError(f"{self.name}: {shared} bytes of dynamic shared memory, and {limit} were asked for")

    def check_types(self, found: list[str]) -> None:
        """found: the arguments' types, in the form of `parameters`."""
        if len(found) != len(self.parameters):
            raise StandInError(f"{self.name}: {len(found)} arguments; it takes {', '.join(self.parameters)}")
        for i, (theirs, ours) in enumerate(zip(found, self.parameters)):
            if theirs != ours:
                raise StandInError(f"{self.name}, argument {i}: {theirs}; it takes {ours}")


def kernels_of(text: str, defines: dict[str, str]) -> dict[str, KernelText]:
    """All kernels of a text that `kernel_source` made."""
    file = FILE.match(text)
    assert file, "a kernel's text begins with the name of its file"
    types = TYPES | {name: TYPES[known] for known, name in TYPEDEF.findall(text) if known in TYPES}
    types["WEIGHT"] = types[defines.get("WEIGHT", "bf16")]  # kernels/weights.cuh
    found = {}
    for match in DEFINITION.finditer(text):
        bounds, name = match[1] or "1024", match[2]
        listed = text[match.end() : text.index(")", match.end())]
        parameters = tuple(
            _type(parameter, types) for parameter in re.sub(r"//.*|#.*", "", listed).split(",") if parameter.strip()
        )
        found[name] = KernelText(file[1], name, parameters, _number(bounds.split(",")[0].strip(), text, defines))
    return found


def _type(parameter: str, types: dict[str, str]) -> str:
    words = [word for word in parameter.replace("*", " * ").split() if word not in ("const", "__restrict__")]
    star = "*" if "*" in words else ""
    plain = " ".join(word for word in words[:-1] if word != "*")
    return types.get(plain, plain) + star


def _number(text: str, source: str, defines: dict[str, str]) -> int:
    """A number, or a constant of the source that is one."""
    if text in defines:
        return int(defines[text])
    while not text.isdecimal():
        match = re.search(rf"constexpr int (?:\w+ = [^,;]+, )*{text} = (\w+)", source)
        if not match:
            return 1024
        text = match[1]
    return int(text)
