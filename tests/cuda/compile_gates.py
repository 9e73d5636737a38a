"""Compile every kernel for every architecture with NVRTC and CuPy's own options; no GPU is needed.

    python -m tests.cuda.compile_gates            prints the table
    python -m tests.cuda.compile_gates --write    prints it and writes it to resources.txt

Needs CuPy, libnvrtc and the CUDA headers: pip install cupy-cuda13x nvidia-cuda-nvrtc nvidia-cuda-runtime. A kernel's
registers, shared memory, stack and spills depend on the options and on NVRTC's version, which the table names.
"""

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from llama3.cuda.launch import Kernel
from llama3.cuda.source import kernel_source
from tests.cuda.emulator.build import built

ARCHITECTURES: tuple[int | str, ...] = (80, 89, 90, 100, 120)  # A100, RTX 4090, H100, B200, RTX 5090
ONLY = {"attention_wgmma.cu": ("90a",)}  # files for one architecture: with Hopper's own instructions
VARIANTS: list[tuple[str, tuple[str, ...]]] = [
    ("rms_norm.cu", ()),
    ("embedding.cu", ()),
    ("rope.cu", ()),
    ("linear.cu", ()),
    ("linear_steps.cu", ()),
    ("qkv.cu", ()),
    *(("linear_few.cu", (f"ROWS={rows}",)) for rows in (8, 16, 32)),
    *(
        (file, (*defines, f"WEIGHT={kind}"))
        for kind in ("Int8", "Fp8", "Int4")
        for file, defines in (
            ("linear.cu", ()),
            ("qkv.cu", ()),
            ("quantised.cu", ()),
            *(("linear_few.cu", (f"ROWS={rows}",)) for rows in (8, 16, 32)),
        )
    ),
    ("feed_forward.cu", ()),
    ("lora.cu", ()),
    ("probes.cu", ()),
    ("sampler.cu", ()),
    ("sampler_select.cu", ()),
    ("sampler_top.cu", ()),
    ("attention.cu", ("HEAD_DIM=64", "GROUP=4")),
    ("attention.cu", ("HEAD_DIM=128", "GROUP=4")),
    ("attention.cu", ("HEAD_DIM=128", "GROUP=8")),
    ("attention_steps.cu", ("HEAD_DIM=64",)),
    ("attention_steps.cu", ("HEAD_DIM=128",)),
    ("attention_split_steps.cu", ("HEAD_DIM=64",)),
    ("attention_split_steps.cu", ("HEAD_DIM=128",)),
    *(("attention_prompt.cu", (f"HEAD_DIM={width}", f"ROWS={rows}")) for width in (64, 128) for rows in (64, 128)),
    ("attention_wgmma.cu", ()),
]
TABLE = Path(__file__).parent / "resources.txt"


@dataclass(frozen=True, order=True)
class Resources:
    """What one kernel needs on one architecture, as ptxas reports it."""

    file: str
    defines: tuple[str, ...]
    name: str
    architecture: int | str
    registers: int
    shared: int  # static, bytes per block
    stack: int  # bytes per thread; must be 0
    spilled: int

    def line(self) -> str:
        defines = ",".join(self.defines) or "-"
        figures = f"{self.registers:4d} {self.shared:6d} {self.stack:4d} {self.spilled:4d}"
        return f"{self.file:19s} {defines:20s} {self.name:17s} sm_{self.architecture:<4} {figures}"


def architectures_of(file: str) -> tuple[int | str, ...]:
    return ONLY.get(file, ARCHITECTURES)


def read_table() -> list[Resources]:
    rows = [line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    return [
        Resources(
            file,
            tuple(d for d in defines.split(",") if d != "-"),
            name,
            int(sm[3:]) if sm[3:].isdecimal() else sm[3:],
            *map(int, figures),
        )
        for file, defines, name, sm, *figures in rows
    ]


@functools.cache
def compiled(source: str, file: str, defines: tuple[str, ...], architecture: int | str) -> tuple[bytes, str]:
    """The cubin of a kernel file whose text is `source`, and what ptxas says about it.

    Both are kept in the temporary folder, because two tests want them, perhaps in two processes. Raises CuPy's
    CompileException if NVRTC refuses the text.
    """
    import cupy
    from cupy._core.core import assemble_cupy_compiler_options
    from cupy.cuda.compiler import _NVRTCProgram
    from cupy_backends.cuda.libs import nvrtc

    options = assemble_cupy_compiler_options(Kernel(file, "", defines).options)
    options = (*options, f"-arch=sm_{architecture}", "-ftz=true", "--ptxas-options=-v")

    def build(work: Path) -> None:
        program = _NVRTCProgram(source, file, method="cubin")
        cubin, _ = program.compile(options)
        (work / "cubin").write_bytes(cubin + b"\0")  # CuPy cuts off the last byte, which is 0
        (work / "log").write_text(nvrtc.getProgramLog(program.ptr))

    versions = f"{nvrtc.getVersion()} {cupy.__version__}"
    folder = built(f"nvrtc-{Path(file).stem}", [versions, *options, source], build)
    return (folder / "cubin").read_bytes(), (folder / "log").read_text()


def compile_kernels(file: str, defines: tuple[str, ...], architecture: int | str) -> list[Resources]:
    """Raises CuPy's CompileException if NVRTC refuses the file."""
    return list(_parse(compiled(kernel_source(file), file, defines, architecture)[1], file, defines, architecture))


def _parse(log: str, file: str, defines: tuple[str, ...], architecture: int | str) -> list[Resources]:
    """ptxas writes three lines for each kernel: its name; its stack and spills; its registers and shared memory."""
    found, name, stack, spilled = [], "", 0, 0
    for line in log.splitlines():
        if match := re.search(r"entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            stack, spilled = int(match[1]), int(match[2])
        elif (match := re.search(r"Used (\d+) registers", line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            size = int(shared[1]) if shared else 0
            found.append(Resources(file, defines, name, architecture, int(match[1]), size, stack, spilled))
            name = ""
    return found


def compile_all() -> list[Resources]:
    return sorted(
        row for file, defines in VARIANTS for sm in architectures_of(file) for row in compile_kernels(file, defines, sm)
    )


def main() -> None:
    from cupy_backends.cuda.libs import nvrtc

    rows = compile_all()
    version = ".".join(map(str, nvrtc.getVersion()))
    lines = [
        f"# NVRTC {version}. For each kernel: registers per thread, static shared memory, stack, spilled bytes.",
        *(row.line() for row in rows),
    ]
    print("\n".join(lines))
    if "--write" in sys.argv[1:]:
        TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
