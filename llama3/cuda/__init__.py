"""The transformer of `llama3/model/` on a GPU: the same file names for the same ideas."""

import re

from llama3.errors import RequestError


def check_device(device: str) -> str:
    """The name again; what cannot be the name of a device is a RequestError. Imports nothing of CUDA."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise RequestError(f"device is {device!r}; expected cpu, cuda, cuda:1 for the second GPU, or auto")
    return device
