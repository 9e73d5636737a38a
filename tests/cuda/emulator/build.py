"""Compile a kernel file with the system's g++, and load the library with ctypes."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
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
    """From the folder of earlier builds, unless the source, the emulator's headers or the options have changed."""
    source = kernel_source(file)
    for bounds, name in DEFINITION.findall(source):
        threads = bounds.split(",")[0] or "1024"  # 256 from `__launch_bounds__(256, 2)`
        source += f"KERNEL({name}, {threads})\n"
    options = COMPILE + [f"-D{define}" for define in defines]
    headers = "".join(path.read_text() for path in sorted(HERE.glob("*.h")))
    key = hashlib.sha256("\0".join([*options, headers, source]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"llama3-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{Path(file).stem}-{key}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            header = str(HERE / "cuda_emulator.h")
            _run(["-c", *options, "-include", header, f"-I{HERE}", "-x", "c++", "-", "-o", f"{work}/o"], source)
            # A separate link without -fsanitize: g++'s own handlers of the reports stay out.
            _run(["-shared", "-Wl,-Bsymbolic", f"{work}/o", "-o", f"{work}/so"])
            os.replace(f"{work}/so", built)
    return ctypes.CDLL(str(built))


def _run(arguments: list[str], text: str = "") -> None:
    assert COMPILER, "g++ is not installed, and the emulation needs it"
    done = subprocess.run([COMPILER, *arguments], input=text, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"g++ refused a kernel:\n{done.stderr}")
    if done.stderr:
        raise RuntimeError(f"g++ warned about a kernel:\n{done.stderr}")
