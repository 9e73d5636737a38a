"""Does a model fit on a GPU: its shape into the kernels, its weights and its cache into the memory?"""

from llama3.config import ModelConfig
from llama3.cuda.activations import PREFILL_CHUNK_ALONE
from llama3.errors import DeviceError

HEAD_DIMS = (64, 128)  # what the attention kernels are compiled for
MULTIPLE = 64  # of every width that a product sums over
RUNTIME = 600 << 20  # bytes: the CUDA context, cuBLAS's workspace, kernels and graphs; an estimate


def check_shape(config: ModelConfig) -> None:
    """Raises DeviceError that names the field."""
    if config.head_dim not in HEAD_DIMS:
        raise DeviceError(f"head_dim is {config.head_dim}; the CUDA kernels take 64 or 128. Use device cpu")
    for name in ("dim", "hidden_dim"):
        if getattr(config, name) % MULTIPLE:
            raise DeviceError(
                f"{name} is {getattr(config, name)}; the CUDA kernels take multiples of {MULTIPLE}. Use device cpu"
            )


def weight_bytes(c: ModelConfig) -> int:
    """In bfloat16."""
    layer = 2 * c.dim + 2 * c.dim * c.head_dim * (c.n_heads + c.n_kv_heads) + 3 * c.dim * c.hidden_dim
    return 2 * (c.n_layers * layer + c.dim + c.vocab_size * c.dim * (1 if c.tied_embeddings else 2))


def cache_bytes(c: ModelConfig, slots: int, max_len: int) -> int:
    """Keys and values, and what attention's splits hand on."""
    splits = -(-max_len // 256)
    handed_on = c.n_heads * (splits * (c.head_dim + 2) + 1)
    return slots * 4 * (c.n_layers * c.n_kv_heads * max_len * c.head_dim + handed_on)


def workspace_bytes(c: ModelConfig, slots: int) -> int:
    """A step's activations, its logits, and the sampler's view of them."""
    heads = (2 * c.n_heads + c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    a_row = 6 * c.dim + 2 * heads + 6 * c.hidden_dim
    a_drawn_row = c.vocab_size * 13 + 2048 * 12  # logits twice, adjusted ones, mask; histograms
    return (PREFILL_CHUNK_ALONE + slots) * a_row + slots * (a_drawn_row + 4 * c.vocab_size)


def needed_bytes(config: ModelConfig, slots: int, max_len: int) -> int:
    fixed = weight_bytes(config) + workspace_bytes(config, slots) + RUNTIME
    return fixed + cache_bytes(config, slots, max_len)


def check_memory(config: ModelConfig, slots: int, max_len: int, free: int) -> None:
    """Raises DeviceError if `free` bytes do not hold the model and caches for `slots` sequences of `max_len` tokens."""
    needed = needed_bytes(config, slots, max_len)
    if needed <= free:
        return
    fits = [n for n in range(256, max_len, 256) if needed_bytes(config, slots, n) <= free]
    sequences = "one sequence" if slots == 1 else f"{slots} sequences"
    advice = f"a context of {fits[-1]:,} would fit" if fits else "not even the weights fit with any context"
    raise DeviceError(
        f"too little GPU memory: {gigabytes(needed)} needed ({gigabytes(weight_bytes(config))} weights, "
        f"{gigabytes(cache_bytes(config, slots, max_len))} cache for {sequences} of {max_len:,} tokens), "
        f"{gigabytes(free)} free; {advice}"
    )


def gigabytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB"
