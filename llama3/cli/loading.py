"""Load the model that the options name. Large weights are read ahead with a progress bar, before the first token."""

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3.cli.terminal import in_bytes, note, prepare_hub, progress
from llama3.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from llama3.llama import Llama
    from llama3.model.weights import Weights

LARGE = 1 << 30  # bytes; smaller weights are read in a moment
CHUNK = 1 << 26  # bytes between two updates of the progress bar; Ctrl-C waits for at most one chunk
PAGE = 4096  # bytes of a memory page


def load(args: argparse.Namespace) -> "Llama":
    """Load --model onto --device, with the adapters of --lora.

    Raises RequestError for a model without a tokenizer, since the command line reads and writes text.
    """
    prepare_hub(args.quiet)
    from llama3.llama import Llama

    with ExitStack() as stack:
        show: Callable[[int], None] | None = None

        def on_upload(done: int, total: int) -> None:
            nonlocal show
            show = show or stack.enter_context(progress("copying weights to the GPU", 2 * total, "B", args.quiet))
            show(2 * done)  # a bfloat16 parameter has 2 bytes

        lora, slots = adapters(args), getattr(args, "slots", 1)
        cpu = {"linear": args.linear, "activations": args.activations}
        llama = Llama.load(args.model, device=args.device, slots=slots, on_upload=on_upload, lora=lora, **cpu)
    if llama.tokenizer is None:
        raise RequestError(
            f"{llama.checkpoint.path} has no tokenizer, so it cannot read text; put tokenizer.model (or "
            "tokenizer.json) of the same model there, or give it token ids in Python: Llama.load(...).generate([1, 2])"
        )
    if llama.device.startswith("cuda"):
        return llama
    arrays = read_by_each_token(llama.checkpoint.weights)
    size, memory = sum(array.nbytes for array in arrays), physical_memory()
    if size > memory:
        if not args.quiet:
            note(
                f"each token reads {in_bytes(size)} of weights, but this machine has {in_bytes(memory)} of memory: "
                "they come from disk each time"
            )
    elif size > LARGE:
        read_ahead(arrays, args.quiet)
    return llama


def adapters(args: argparse.Namespace) -> dict[str, str]:
    """The LoRA adapters of --lora, {name: folder}. Raises RequestError if two have the same name."""
    given = getattr(args, "lora", None) or []
    lora = dict(given)
    if len(lora) < len(given):
        names = ", ".join(name for name, _ in given)
        raise RequestError(
            f"{args.source['lora']}: two adapters have the same name ({names}); expected a different one for each"
        )
    return lora


def which(llama: "Llama", args: argparse.Namespace) -> str:
    """A short name of the model, and the device it runs on: "demo on cpu"."""
    return which_of(llama.checkpoint.path, llama.device, args)


def which_of(path: Path, device: str, args: argparse.Namespace) -> str:
    """The same of a model that is loaded elsewhere. path: its folder."""
    cached = "snapshots" in path.parts  # in the hub's cache, where the folder is named after a commit
    return f"{args.model if cached else path.absolute().name} on {device}"


def read_by_each_token(weights: "Weights") -> "list[np.ndarray]":
    """Every array that a forward pass reads whole, in this order.

    A token reads one row of the embedding, so the embedding is left out, which is 1 GB with the 8B. If it is tied, it
    is the output matrix.
    """
    from llama3.model.quantised import QuantisedMatrix

    arrays: list[Any] = []
    for layer in weights.layers:
        arrays += vars(layer).values()
    arrays += [weights.norm, weights.output]
    return [part for array in arrays for part in (array.arrays if isinstance(array, QuantisedMatrix) else [array])]


def read_ahead(arrays: "list[np.ndarray]", quiet: bool) -> None:
    """Touch one byte of every page, so that the mapped files are read into memory now, with a progress bar."""
    import numpy as np

    done = 0
    with progress("reading the weights", sum(array.nbytes for array in arrays), "B", quiet) as report:
        for array in arrays:
            flat = array.reshape(-1).view(np.uint8)
            for start in range(0, flat.size, CHUNK):
                chunk = flat[start : start + CHUNK]
                chunk[::PAGE].max()
                report(done := done + chunk.size)


def physical_memory() -> float:
    """Bytes of memory in this machine; infinity if the system does not report it."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
