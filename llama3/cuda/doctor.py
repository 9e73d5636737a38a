"""Checks of everything that a model needs on a GPU: what was found, and how to fix what is missing."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

from llama3.checkpoint import Checkpoint
from llama3.cuda import numbers_of
from llama3.cuda.cublas import load_library
from llama3.cuda.device import open_device
from llama3.cuda.memory import MULTIPLE, check_memory, check_shape, gigabytes, needed_bytes
from llama3.cuda.nccl import MEMORY as NCCL_MEMORY
from llama3.cuda.nccl import load_library as load_nccl
from llama3.cuda.nccl import version as library_version
from llama3.cuda.source import kernel_source
from llama3.cuda.weights import described, uploaded_bytes
from llama3.errors import DeviceError
from llama3.model.split import check_split, split_config, split_weights


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    fix: str = ""  # what to do, if it is not ok


class Missing(Exception):
    """Its arguments: what was found instead, and how to fix it."""


INSTALL = "pip install 'llama3[cuda13-ctk]' (cuda12-ctk if the driver only supports CUDA 12: see nvidia-smi)"


def examine(checkpoint: Checkpoint, device: str = "cuda", slots: int = 1) -> list[Check]:
    """Run every check, even after one has failed, so that one report names all that is missing. Raises nothing."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("shape", lambda: shape(checkpoint, device)),
        *([("weights", lambda: quantised(checkpoint, device))] if described(checkpoint.weights) else []),
        ("CuPy", cupy_wheel),
        ("compiler", compiler),
        ("cuBLAS", cublas),
        ("driver", driver),
        *([("NCCL", nccl)] if len(numbers_of(device)[1]) > 1 else []),
        ("GPU", lambda: "; ".join(gpu(f"cuda:{number}") for number in numbers_of(device)[1])),
        ("memory", lambda: memory(checkpoint, device, slots)),
    ]
    return [run_check(name, check) for name, check in checks]


def run_check(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except Missing as missing:
        found, fix = missing.args
        return Check(name, False, found, fix)
    except DeviceError as error:
        found, _, fix = str(error).partition("; ")
        return Check(name, False, found, fix)
    except Exception as error:  # a half-installed library may raise anything
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", INSTALL)


def shape(checkpoint: Checkpoint, device: str = "cuda") -> str:
    ranks = len(numbers_of(device)[1])
    check_split(checkpoint.config, checkpoint.weights, device, ranks, MULTIPLE)
    check_shape(split_config(checkpoint.config, ranks))
    return f"head_dim {checkpoint.config.head_dim}, and every width a multiple of 64"


def quantised(checkpoint: Checkpoint, device: str) -> str:
    """What becomes of a GPU's part of the quantised matrices."""
    ranks = len(numbers_of(device)[1])
    check_split(checkpoint.config, checkpoint.weights, device, ranks, MULTIPLE)
    return described(split_weights(checkpoint.weights, 0, ranks))


def cupy_wheel() -> str:
    wheels = sorted({d.metadata["Name"] for d in distributions() if (d.metadata["Name"] or "").startswith("cupy")})
    if len(wheels) > 1:
        raise Missing(f"{' and '.join(wheels)} in one environment", f"pip uninstall {' '.join(wheels)}, then {INSTALL}")
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise Missing(f"not importable ({' '.join(str(error).split())[:120]})", INSTALL) from None
    return f"{wheels[0] if wheels else 'cupy'} {cupy.__version__}"


def compiler() -> str:
    """Compile one of our kernels for compute capability 8.0, which needs no GPU."""
    nvrtc = backend("nvrtc")
    program = importlib.import_module("cupy.cuda.compiler")._NVRTCProgram(
        kernel_source("embedding.cu"), "embedding.cu", method="cubin"
    )
    assemble = importlib.import_module("cupy._core.core").assemble_cupy_compiler_options
    program.compile((*assemble(("-std=c++17",)), "-arch=sm_80"))
    return "NVRTC {}.{}, and the CUDA headers".format(*nvrtc.getVersion())


def cublas() -> str:
    load_library()
    return "found"


def nccl() -> str:
    """The library that adds up over several GPUs."""
    return f"NCCL {library_version(load_nccl())}"


def backend(name: str) -> Any:
    try:
        return importlib.import_module(f"cupy_backends.cuda.libs.{name}")
    except ImportError as error:
        raise Missing(f"not found ({' '.join(str(error).split())[:120]})", INSTALL) from None


def driver() -> str:
    runtime = importlib.import_module("cupy").cuda.runtime
    version = runtime.driverGetVersion()  # 13000; 0 without a driver
    if not version:
        raise Missing("no NVIDIA driver", "install one, so that nvidia-smi lists a GPU; until then --device cpu")
    needed = runtime.runtimeGetVersion() // 1000
    if version // 1000 < needed:
        raise Missing(
            f"supports CUDA {version // 1000}, and CuPy was built for {needed}",
            f"pip install 'llama3[cuda{version // 1000}-ctk]', or a newer driver",
        )
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def gpu(device: str) -> str:
    open_device(device)
    runtime = importlib.import_module("cupy").cuda.runtime
    index, count = int(device.partition(":")[2] or 0), runtime.getDeviceCount()
    p = runtime.getDeviceProperties(index)
    return f"{p['name'].decode()}, compute capability {p['major']}.{p['minor']}, number {index} of {count}"


def memory(checkpoint: Checkpoint, device: str, slots: int) -> str:
    """Of each GPU: a rank's part of the model must fit."""
    _, numbers = numbers_of(device)
    n = len(numbers)
    check_split(checkpoint.config, checkpoint.weights, device, n, MULTIPLE)
    config, more = split_config(checkpoint.config, n), NCCL_MEMORY if n > 1 else 0
    weights = uploaded_bytes(split_weights(checkpoint.weights, 0, n))  # rank 0 has the output matrix, too
    needed = gigabytes(needed_bytes(config, slots, config.max_seq_len, weights) + more)
    found = []
    for number in numbers:
        try:
            free, total = open_device(f"cuda:{number}").memory()
        except DeviceError:
            raise Missing(f"{needed} needed for {slots} x {config.max_seq_len:,} tokens, and no GPU", "") from None
        check_memory(config, slots, config.max_seq_len, free - more, weights)
        found.append(f"{gigabytes(free)} of {gigabytes(total)} free")
    return f"{needed} needed for {slots} x {config.max_seq_len:,} tokens, {'; '.join(found)}"
