"""The transformer of `llama3/model/` on a GPU. A file with the name of a NumPy file computes the same."""

import re

from llama3.errors import RequestError

MAX_RANKS = 64
NAMES = "cpu, cuda, cuda:1 for the second GPU, cuda:0-3 for four GPUs together, or auto"


def check_device(device: str) -> str:
    """Returns the name, or raises RequestError if it cannot be the name of a device. Imports no CUDA library."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu(:0-[0-9]+)?|cuda(:[0-9]+(-[0-9]+)?)?", device):
        raise RequestError(f"device is {device!r}; expected {NAMES}")
    kind, numbers = numbers_of(device)
    if "-" in device and (len(numbers) < 2 or len(numbers) > MAX_RANKS):
        raise RequestError(
            f"device is {device!r}; expected a range of 2 to {MAX_RANKS} {'GPUs' if kind == 'cuda' else 'processes'}, "
            f"such as {kind}:0-1"
        )
    return device


def numbers_of(device: str) -> tuple[str, range]:
    """ "cuda:2-5" -> ("cuda", range(2, 6)): a kind, and the numbers of its GPUs or processes. "cpu": the number 0."""
    kind, _, numbers = device.partition(":")
    first, _, last = numbers.partition("-")
    return kind, range(int(first or 0), int(last or first or 0) + 1)
