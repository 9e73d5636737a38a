"""The GPU that gpu.py runs on: its name, its clocks and power beside each figure, and its memory given back."""

import gc
import subprocess
from typing import Any

import torch
from gpu_report import one_line  # the file beside this one

QUERY = {
    "sm_MHz": "clocks.sm",
    "memory_MHz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
    "slowed_by": "clocks_throttle_reasons.active",  # bits: 0x4 power, 0x20 and 0x40 heat
}


def card_name() -> str:
    return torch.cuda.get_device_name(0)


def clocks() -> dict[str, float | str]:
    """What nvidia-smi reports now. After a measurement the GPU still has the clocks and the power of that moment."""
    card = f"GPU-{torch.cuda.get_device_properties(0).uuid}"  # its number may differ under CUDA_VISIBLE_DEVICES
    fields = ",".join(QUERY.values())
    command = ["nvidia-smi", f"--id={card}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return {name: _number(text) for name, text in zip(QUERY, ran.stdout.strip().split(","), strict=True)}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"not_read": one_line(error)}


def _number(text: str) -> float | str:
    text = text.strip()
    return float(text) if text.replace(".", "", 1).isdigit() else text


def give_back_memory() -> None:
    """Free what earlier rows have left: compiled graphs, dropped caches, and the unused memory of both allocators.

    An allocator keeps freed memory for itself, where the other library cannot get it.
    """
    import cupy

    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()


def beside() -> dict[str, Any]:
    """The clocks, and the GB in use on the GPU by all processes."""
    free, total = torch.cuda.mem_get_info()
    return {"clocks": clocks(), "used_GB": (total - free) / 1e9, "total_GB": total / 1e9}


def failure() -> str | None:
    """Why the GPU does not answer any more; None if it does. After a fault in a kernel, every later call fails."""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return one_line(error)
    return None


def about_libraries() -> dict[str, Any]:
    import cupy
    import transformers

    return {"torch": torch.__version__, "cupy": cupy.__version__, "transformers": transformers.__version__}
