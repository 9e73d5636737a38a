"""What a model needs on a GPU, looked at one thing after another: what was found, and how to mend what is missing."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

from llama3.checkpoint import Checkpoint
from llama3.cuda.device import open_device
from llama3.cuda.memory import check_memory, check_shape, gigabytes, needed_bytes
from llama3.cuda.source import kernel_source
from llama3.errors import DeviceError


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    mend: str = ""  # what to do, where it is not ok


class Missing(Exception):
    """What was found instead, and what to do about it."""


INSTALL = "pip install 'llama3[cuda13-ctk]' (cuda12-ctk for a driver that knows CUDA 12 alone: nvidia-smi names it)"


def examine(checkpoint: Checkpoint, device: str = "cuda", slots: int = 1) -> list[Check]:
    """Every check, also after one has failed: a broken installation is told of at once. Raises nothing."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("shape", lambda: shape(checkpoint)),
        ("CuPy", cupy_wheel),
        ("compiler", compiler),
        ("cuBLAS", cublas),
        ("driver", driver),
        ("GPU", lambda: gpu(device)),
        ("memory", lambda: memory(checkpoint, device, slots)),
    ]
    return [look(name, check) for name, check in checks]


def look(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except Missing as missing:
        found, mend = missing.args
        return Check(name, False, found, mend)
    except DeviceError as error:
        found, _, mend = str(error).partition("; ")
        return Check(name, False, found, mend)
    except Exception as error:  # whatever a half-installed library does
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", INSTALL)


def shape(checkpoint: Checkpoint) -> str:
    check_shape(checkpoint.config)
    return f"head_dim {checkpoint.config.head_dim}, and every width a multiple of 64"


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
    """Compile a kernel of ours, as a GPU would have it, without one."""
    nvrtc = backend("nvrtc")
    program = importlib.import_module("cupy.cuda.compiler")._NVRTCProgram(
        kernel_source("embedding.cu"), "embedding.cu", method="cubin"
    )
    assemble = importlib.import_module("cupy._core.core").assemble_cupy_compiler_options
    program.compile((*assemble(("-std=c++17",)), "-arch=sm_80"))
    return "NVRTC {}.{}, and the CUDA headers".format(*nvrtc.getVersion())


def cublas() -> str:
    backend("cublas")
    return "found"


def backend(name: str) -> Any:
    try:
        return importlib.import_module(f"cupy_backends.cuda.libs.{name}")
    except ImportError as error:
        raise Missing(f"not there ({' '.join(str(error).split())[:120]})", INSTALL) from None


def driver() -> str:
    runtime = importlib.import_module("cupy").cuda.runtime
    version = runtime.driverGetVersion()  # 13000; 0: there is none
    if not version:
        raise Missing("no NVIDIA driver", "install one, so that nvidia-smi lists a GPU; until then --device cpu")
    needed = runtime.runtimeGetVersion() // 1000
    if version // 1000 < needed:
        raise Missing(
            f"knows CUDA {version // 1000}, CuPy is made for {needed}",
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
    config = checkpoint.config
    needed = gigabytes(needed_bytes(config, slots, config.max_seq_len))
    try:
        free, total = open_device(device).memory()
    except DeviceError:
        raise Missing(f"{needed} needed for {slots} x {config.max_seq_len:,} tokens, and no GPU", "") from None
    check_memory(config, slots, config.max_seq_len, free)
    return f"{needed} needed for {slots} x {config.max_seq_len:,} tokens, {gigabytes(free)} of {gigabytes(total)} free"
