"""Load the model that the options name, and read large weights ahead, so that the first token is no silent wait."""

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from llama3.cli.terminal import in_bytes, note, prepare_hub, progress
from llama3.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from llama3.llama import Llama
    from llama3.model.weights import Weights

LARGE = 1 << 30  # bytes of weights from which on reading them takes noticeable time
CHUNK = 1 << 26  # bytes between two updates of the bar, and the longest that Ctrl-C has to wait
PAGE = 4096


def load(args: argparse.Namespace) -> "Llama":
    """Raises RequestError for a model without a tokenizer: the command line speaks text."""
    prepare_hub(args.quiet)
    from llama3.llama import Llama

    with ExitStack() as stack:
        show: Callable[[int], None] | None = None

        def on_upload(done: int, total: int) -> None:
            nonlocal show
            show = show or stack.enter_context(progress("weights to the GPU", 2 * total, "B", args.quiet))
            show(2 * done)  # bfloat16

        given = getattr(args, "lora", None) or []
        lora = dict(given)
        if len(lora) < len(given):
            names = ", ".join(name for name, _ in given)
            raise RequestError(f"{args.source['lora']}: the names are {names}; expected each adapter under its own")
        slots = getattr(args, "slots", 1)
        llama = Llama.load(args.model, device=args.device, slots=slots, on_upload=on_upload, lora=lora)
    if llama.tokenizer is None:
        raise RequestError(
            f"{llama.checkpoint.path} has no tokenizer, so it cannot read text; put tokenizer.model (or "
            "tokenizer.json) of the same model there, or give it token ids in Python: Llama.load(...).generate([1, 2])"
        )
    if llama.device != "cpu":
        return llama
    arrays = all_arrays(llama.checkpoint.weights)
    size, memory = sum(array.nbytes for array in arrays), physical_memory()
    if size > memory:
        if not args.quiet:
            note(
                f"the weights have {in_bytes(size)}, this machine {in_bytes(memory)} of memory: "
                "each token reads them from disk again"
            )
    elif size > LARGE:
        read_ahead(arrays, args.quiet)
    return llama


def which(llama: "Llama", args: argparse.Namespace) -> str:
    """The model in a word or two, and what it runs on: "demo on cpu"."""
    path = llama.checkpoint.path
    cached = "snapshots" in path.parts  # the hub's cache: the folder's own name is a commit's
    return f"{args.model if cached else path.absolute().name} on {llama.device}"


def all_arrays(weights: "Weights") -> "list[np.ndarray]":
    """Every array of the weights, once, in the order in which a forward pass needs them."""
    arrays = [weights.tok_embeddings]
    for layer in weights.layers:
        arrays += vars(layer).values()
    return arrays + [weights.norm] + ([] if weights.output is weights.tok_embeddings else [weights.output])


def read_ahead(arrays: "list[np.ndarray]", quiet: bool) -> None:
    """Touch a byte of every page: the mapped files come into memory now, in order and with a bar."""
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
    """Bytes; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
