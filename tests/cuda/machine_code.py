"""Reads the machine code of kernels, as nvdisasm prints it.

nvdisasm (pip install nvidia-cuda-nvdisasm) writes one instruction a line, and a label before the target of a branch:

            /*0560*/                   ACQBULK ;
    .L_x_2:
            /*0570*/              @!P0 LDG.E.128 R4, desc[UR8][R2.64+0x10] ;
            /*0580*/                   BRA `(.L_x_2) ;

An opcode is a name and modifiers. These are read here:

    ACQBULK           griddepcontrol.wait: waits for the kernel before this one
    UBLKPF            cp.async.bulk.prefetch.L2: what prefetch_range of ptx.cuh asks for
    LDG, STG, RED...  loads, stores and atomics of global memory; LDL and STL are those of a thread's own stack
    .CONSTANT         of a load: read-only (ld.global.nc), which may be moved across ACQBULK
    .NA, .EL          of a load: no_allocate and evict_last, which only load_once and load_kept of ptx.cuh ask for
    .64, .128         bits of a load or a store
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

WAIT = "ACQBULK"
PREFETCH = "UBLKPF"
LOADS = ("LD", "LDG", "LDGSTS")  # of global memory; LDGSTS is cp.async
STORES = ("ST", "STG", "RED", "REDG", "ATOM", "ATOMG")  # to global memory, with atomics
LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([\w.]+)\s*(.*?)\s*(?:\(\*.*\*\)\s*)?;")
LABEL = re.compile(r"(\.L_\w+):")
KERNEL = re.compile(r"\.text\.(\w+):")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "P0", "!P0", or "" if it is always executed
    opcode: str
    operands: str

    @cached_property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @cached_property
    def modifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]

    @property
    def loads_weights(self) -> bool:
        """Is it a load_once or a load_kept, of 16 bytes?"""
        return self.name == "LDG" and ("NA" in self.modifiers or "EL" in self.modifiers) and "128" in self.modifiers

    @property
    def loads_a_scale(self) -> bool:
        """Is it a load_once of 4 bytes: of the scale of a row of weights?"""
        return self.name == "LDG" and "NA" in self.modifiers and "128" not in self.modifiers

    @property
    def target(self) -> str | None:
        """The label to which a branch jumps."""
        match = re.search(r"`\((\.L_\w+)\)", self.operands)
        return match[1] if match and self.name == "BRA" else None

    @cached_property
    def quads(self) -> set[int]:
        """The registers that it names, in groups of four: R4 to R7 are quad 1.

        A load of 16 bytes fills a quad. An operand of several registers is aligned, so its first one names the quad.
        """
        return {int(number) // 4 for number in re.findall(r"(?<![\w.])R(\d+)", self.operands)}

    @cached_property
    def loaded_quad(self) -> int:
        """The quad into which a load writes: its first operand is there."""
        match = re.match(r"(?:U?P\w+, )?R(\d+)", self.operands)
        assert match and self.name == "LDG", self
        return int(match[1]) // 4

    def __str__(self) -> str:
        return f"{self.address:04x} {'@' + self.predicate + ' ' if self.predicate else ''}{self.opcode} {self.operands}"


@dataclass(frozen=True)
class MachineCode:
    """The instructions of one kernel in the order of their addresses, and for each label the index of its target."""

    instructions: list[Instruction]
    labels: dict[str, int]

    @property
    def waits(self) -> bool:
        return any(i.name == WAIT for i in self.instructions)

    @property
    def read_only(self) -> list[Instruction]:
        """The loads through the read-only path."""
        return [i for i in self.instructions if i.name in LOADS and "CONSTANT" in i.modifiers]

    def before_the_wait(self) -> list[Instruction]:
        """What a thread can execute before ACQBULK, by the order of addresses; everything, if there is none."""
        seen: set[int] = set()
        to_do = [0]
        while to_do:
            at = to_do.pop()
            if at in seen or at >= len(self.instructions) or self.instructions[at].name == WAIT:
                continue
            seen.add(at)
            to_do += self._successors(at)
        return [self.instructions[at] for at in sorted(seen)]

    def loops(self) -> list[list[Instruction]]:
        """The instructions of each loop: from the target of a backward branch to the branch.

        Code for a rare case stands behind the end of the kernel, and jumps back. That is no loop.
        """
        found = []
        for at, instruction in enumerate(self.instructions):
            start = self.labels.get(instruction.target or "", at + 1)
            body = self.instructions[start : at + 1]
            if start < at and not any(i.name == "EXIT" and not i.predicate for i in body):
                found.append(body)  # (a branch to itself only fills the end of the code)
        return found

    def _successors(self, at: int) -> list[int]:
        instruction = self.instructions[at]
        assert instruction.name not in ("BRX", "JMX"), f"a branch to a computed address: {instruction}"
        to = [self.labels[instruction.target]] if instruction.target else []
        ends = instruction.name in ("BRA", "EXIT", "RET") and not instruction.predicate
        # `BRA.DIV UR4, target` and `BRA P1, target` branch on an operand.
        if instruction.name == "BRA" and not instruction.operands.startswith("`"):
            ends = False
        return to if ends else [*to, at + 1]


def parse(text: str) -> dict[str, MachineCode]:
    """The kernels in what nvdisasm has printed, by name."""
    kernels: dict[str, MachineCode] = {}
    code = None
    for line in text.splitlines():
        if match := KERNEL.match(line):
            code = kernels.setdefault(match[1], MachineCode([], {}))
        elif code and (match := LABEL.match(line)):
            code.labels[match[1]] = len(code.instructions)
        elif code and (match := LINE.match(line)):
            code.instructions.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4]))
    return kernels


def disassembler() -> Path | None:
    """nvdisasm of the package nvidia-cuda-nvdisasm, or of a CUDA toolkit."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name == "nvdisasm"]
    return found[0] if found else Path(path) if (path := shutil.which("nvdisasm")) else None


def disassemble(cubin: bytes) -> dict[str, MachineCode]:
    """cubin: what NVRTC has compiled."""
    program = disassembler()
    assert program, "nvdisasm is not installed: pip install nvidia-cuda-nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, "-c", file.name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)
