"""The transformer of `llama3/model/` on a GPU. A file with the name of a NumPy file computes the same."""

import re

from llama3.errors import RequestError


def check_device(device: str) -> str:
    """Returns the name, or raises RequestError if it cannot be the name of a device. Imports no CUDA library."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise RequestError(f"device is {device!r}; expected cpu, cuda, cuda:1 for the second GPU, or auto")
    return device
