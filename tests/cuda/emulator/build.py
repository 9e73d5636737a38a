"""Compile a kernel file with the system's g++, and load the library with ctypes."""

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama3.cuda.source import kernel_source

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
COMPILE = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare"]
COMPILE += ["-fno-strict-aliasing"]  # kernels read a uint4 as eight bfloat16; without this g++ drops the loads
COMPILE += ["-fno-gnu-unique", "-fvisibility-inlines-hidden"]  # two kernel files must not share variables
COMPILE += ["-fsanitize=alignment,bounds"]  # memory.h handles the reports
COMPILE += ["-Werror=frame-larger-than=32768", "-Wframe-larger-than=32768"]  # a quarter of a fiber's stack
# `extern "C" __global__ void __launch_bounds__(256) name(`
DEFINITION = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\(([^)]*)\)\s+)?(\w+)\(')


class Range(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class Launch(ctypes.Structure):  # as in launch.h
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_size_t),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("dependent", ctypes.c_int),
        ("n_hidden", ctypes.c_int),
        ("hidden", ctypes.POINTER(Range)),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("removed_file", ctypes.c_char_p),
        ("removed_line", ctypes.c_int),
        ("message", ctypes.c_char_p),
        ("fault", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class EmulatedKernel:
    parameters: tuple[str, ...]  # "const bfloat16*", "float32"
    max_threads: int
    static_shared: int
    run: "ctypes._NamedFuncPointer"  # (Launch*) -> 1 if it failed


@functools.cache
def load(file: str, name: str, defines: tuple[str, ...]) -> EmulatedKernel:
    library = _library(file, defines)
    if not hasattr(library, f"launch_{name}"):
        raise ValueError(f'{file} defines no kernel {name}: it would begin with `extern "C" __global__ void {name}(`')
    text = ctypes.create_string_buffer(4096)
    library[f"describe_{name}"](text, ctypes.c_size_t(4096))
    static_shared = library[f"static_shared_{name}"]
    static_shared.restype = ctypes.c_size_t
    parameters = tuple(filter(None, text.value.decode().split(",")))
    return EmulatedKernel(parameters, library[f"max_threads_{name}"](), static_shared(), library[f"launch_{name}"])


@functools.cache
def _library(file: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    source = kernel_source(file)
    for bounds, name in DEFINITION.findall(source):
        threads = bounds.split(",")[0] or "1024"  # 256 from `__launch_bounds__(256, 2)`
        source += f"KERNEL({name}, {threads})\n"
    options = [*COMPILE, *(f"-D{define}" for define in defines)]

    def build(work: Path) -> None:
        include = ["-include", str(_headers() / "all.h"), f"-I{HERE}", "-x", "c++", "-"]
        _run(["-c", *options, *include, "-o", f"{work}/object"], source)
        # A separate link without -fsanitize: g++'s own handlers of the reports stay out.
        _run(["-shared", "-Wl,-Bsymbolic", f"{work}/object", "-o", f"{work}/library.so"])

    return ctypes.CDLL(str(built(Path(file).stem, [*options, source], build) / "library.so"))


@functools.cache
def _headers() -> Path:
    """A folder with all.h and its precompiled form: parsing the emulator's headers takes longer than most kernels."""

    def build(work: Path) -> None:
        (work / "all.h").write_text(f'#include "{HERE}/cuda_emulator.h"\n')
        _run([*COMPILE, "-x", "c++-header", f"{work}/all.h", "-o", f"{work}/all.h.gch"])

    return built("headers", [str(HERE), *COMPILE], build)


def built(name: str, inputs: list[str], build: Callable[[Path], None]) -> Path:
    """A folder that `build` has filled, now or in an earlier run; inputs: what it depends on, beside our headers."""
    headers = "".join(path.read_text() for path in sorted(HERE.glob("*.h")))
    key = hashlib.sha256("\0".join([*inputs, headers]).encode()).hexdigest()[:24]
    everything = Path(tempfile.gettempdir()) / f"llama3-emulated-{os.getuid()}"
    everything.mkdir(mode=0o700, exist_ok=True)
    built = everything / f"{name}-{key}"
    if not built.exists():
        work = Path(tempfile.mkdtemp(dir=everything))
        try:
            build(work)
            with contextlib.suppress(OSError):  # another process was faster
                work.rename(built)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return built


def _run(arguments: list[str], text: str = "") -> None:
    assert COMPILER, "g++ is not installed, and the emulation needs it"
    done = subprocess.run([COMPILER, *arguments], input=text, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"g++ refused a kernel:\n{done.stderr}")
    if done.stderr:
        raise RuntimeError(f"g++ warned about a kernel:\n{done.stderr}")
