"""Load a checkpoint onto a GPU. Everything that the model needs is checked before the first byte is uploaded."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec

from llama3.checkpoint import Checkpoint
from llama3.cuda.device import Device, open_device
from llama3.cuda.memory import check_memory, check_shape
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights, uploaded_bytes
from llama3.errors import DeviceError
from llama3.model.lora import Adapter


def load_model(
    device: str,
    checkpoint: Checkpoint,
    slots: int,
    report: Callable[[int, int], None] | None = None,
    adapters: Mapping[str, Adapter] | None = None,
    rope_angles: str = "float64",
) -> Transformer:
    """device: "cuda", or "cuda:1" for the second GPU. report(done, total): called with the parameters uploaded so far.
    rope_angles: see `rope_table`.

    Raises DeviceError: no such GPU, no driver, no CuPy, a shape that the kernels do not support, too little memory.
    """
    opened = ready(device, checkpoint, slots)
    total = checkpoint.parameters
    weights = upload_weights(opened, checkpoint.weights, report and (lambda done: report(done, total)))
    return Transformer(opened, checkpoint.config, weights, adapters, rope_angles)


def ready(device: str, checkpoint: Checkpoint, slots: int) -> Device:
    """The device, if the model can run on it with `slots` slots. Raises a DeviceError that says what is missing."""
    opened = open_device(device)
    check_shape(checkpoint.config)
    free, _ = opened.memory()
    check_memory(checkpoint.config, slots, checkpoint.config.max_seq_len, free, uploaded_bytes(checkpoint.weights))
    return opened


def best_device(checkpoint: Checkpoint, slots: int) -> str:
    """ "cuda" if the model can run there, else "cpu"."""
    if find_spec("cupy") is None:
        return "cpu"
    try:
        ready("cuda", checkpoint, slots)
    except DeviceError:
        return "cpu"
    return "cuda"
