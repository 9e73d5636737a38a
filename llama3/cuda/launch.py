"""Kernels and their launches, as data: `Device.launch` checks a launch, then runs or records it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kernel:
    file: str  # in kernels/
    name: str
    defines: tuple[str, ...] = ()  # ("HEAD_DIM=128",)
    max_shared: int = 0  # the most bytes of dynamic shared memory a block may have, if that is more than 48 KB
    architecture: str = ""  # "sm_90a", if it is written for this one only

    @property
    def options(self) -> tuple[str, ...]:
        """For the compiler."""
        return "-std=c++17", *(f"-D{define}" for define in self.defines)


@dataclass(frozen=True, eq=False)
class Launch:
    kernel: Kernel
    grid: tuple[int, int, int]  # blocks
    block: tuple[int, int, int]  # threads of a block
    args: Sequence[Any]  # device arrays and NumPy scalars, in the order of the kernel's parameters
    shared: int = 0  # bytes of dynamic shared memory a block
    dependent: bool = False  # may start before its predecessor has ended (see dependent_launch.py)
