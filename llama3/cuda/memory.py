"""Does a model fit a GPU? The kernels must support its shape, and the memory must hold its weights and its cache."""

from llama3.config import ModelConfig
from llama3.cuda.activations import PREFILL_CHUNK_ALONE
from llama3.cuda.attention import SPLIT
from llama3.cuda.cublas import WORKSPACE
from llama3.errors import DeviceError

HEAD_DIMS = (64, 128)  # the attention kernels can be compiled for these
MULTIPLE = 64  # every width that a product sums over must be a multiple of this
RUNTIME = 568 << 20  # bytes for the CUDA context, cuBLAS, kernels and graphs; an estimate


def check_shape(config: ModelConfig) -> None:
    """Raises a DeviceError that names the field if the kernels do not support the shape."""
    if config.head_dim not in HEAD_DIMS:
        raise DeviceError(f"head_dim is {config.head_dim}; the CUDA kernels take 64 or 128. Use device cpu")
    for name in ("dim", "hidden_dim"):
        if getattr(config, name) % MULTIPLE:
            raise DeviceError(
                f"{name} is {getattr(config, name)}; the CUDA kernels take multiples of {MULTIPLE}. Use device cpu"
            )


def weight_bytes(c: ModelConfig) -> int:
    """Bytes of all weights in bfloat16."""
    layer = 2 * c.dim + 2 * c.dim * c.head_dim * (c.n_heads + c.n_kv_heads) + 3 * c.dim * c.hidden_dim
    return 2 * (c.n_layers * layer + c.dim + c.vocab_size * c.dim * (1 if c.tied_embeddings else 2))


def cache_bytes(c: ModelConfig, slots: int, max_len: int) -> int:
    """Bytes of the keys and values, and of `attention.SplitWorkspace`."""
    n_splits = -(-max_len // SPLIT)
    split_workspace = c.n_heads * (n_splits * (c.head_dim + 2) + 1)
    return slots * 4 * (c.n_layers * c.n_kv_heads * max_len * c.head_dim + split_workspace)


def workspace_bytes(c: ModelConfig, slots: int) -> int:
    """Bytes of a step's activations, its logits, the sampler's state, and cuBLAS's workspace."""
    heads = (2 * c.n_heads + c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    per_row = 6 * c.dim + 2 * heads + 6 * c.hidden_dim
    per_drawn_row = c.vocab_size * 13 + 2048 * 12  # logits twice, adjusted logits, mask; histograms
    history = 4 * c.vocab_size
    return (PREFILL_CHUNK_ALONE + slots) * per_row + slots * (per_drawn_row + history) + WORKSPACE


def needed_bytes(config: ModelConfig, slots: int, max_len: int, weights: int | None = None) -> int:
    """weights: their bytes, if they are not all in bfloat16 (`weights.uploaded_bytes`)."""
    weights = weight_bytes(config) if weights is None else weights
    return weights + workspace_bytes(config, slots) + RUNTIME + cache_bytes(config, slots, max_len)


def check_memory(config: ModelConfig, slots: int, max_len: int, free: int, weights: int | None = None) -> None:
    """Raises DeviceError if the model, with a cache for `slots` sequences of max_len tokens, needs more than `free`.

    free: bytes; weights: as in `needed_bytes`. The message says which context would fit.
    """
    weights = weight_bytes(config) if weights is None else weights
    needed = needed_bytes(config, slots, max_len, weights)
    if needed <= free:
        return
    fits = [n for n in range(256, max_len, 256) if needed_bytes(config, slots, n, weights) <= free]
    sequences = "one sequence" if slots == 1 else f"{slots} sequences"
    advice = f"a context of {fits[-1]:,} would fit" if fits else "not even a context of 256 would fit"
    raise DeviceError(
        f"too little GPU memory: {gigabytes(needed)} needed ({gigabytes(weights)} weights, "
        f"{gigabytes(cache_bytes(config, slots, max_len))} cache for {sequences} of {max_len:,} tokens), "
        f"{gigabytes(free)} free; {advice}"
    )


def gigabytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB"
