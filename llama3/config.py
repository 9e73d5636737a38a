"""The shape of a Llama 3 model. `checkpoint/config_file.py` reads it from a checkpoint's config.json or params.json."""

from dataclasses import dataclass
from typing import Any

from llama3.errors import CheckpointError

MAX_CONTEXT = 8192  # tokens; the limit also for checkpoints that allow more


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of RoPE, which slows down the low frequencies (see `model/rope.py`)."""

    factor: float = 8.0  # the lowest frequencies are divided by it
    low_freq_factor: float = 1.0  # wavelengths over original_max_seq_len / this are scaled in full
    high_freq_factor: float = 4.0  # wavelengths under original_max_seq_len / this are not scaled
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            check_number(f"rope scaling: {field}", value)
        low, high = self.low_freq_factor, self.high_freq_factor
        if not (self.factor >= 1 and 0 < low < high and self.original_max_seq_len > 0):
            raise CheckpointError(f"rope scaling is {self}; expected factor >= 1, 0 < low < high, original length > 0")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, by Meta's names. Raises CheckpointError, naming the field, for values that cannot be."""

    dim: int  # width of the residual stream
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads; each is shared by n_heads / n_kv_heads query heads
    head_dim: int
    hidden_dim: int  # width inside the feed-forward network
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    max_seq_len: int = MAX_CONTEXT
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False  # the output matrix is the embedding table

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{name} is {value!r}; expected a positive integer")
        for name in ("norm_eps", "rope_theta"):
            if not 0 < check_number(name, getattr(self, name)) < 1e30:
                raise CheckpointError(f"{name} is {getattr(self, name)!r}; expected a positive number")
        if not isinstance(self.tied_embeddings, bool):
            raise CheckpointError(f"tie_word_embeddings is {self.tied_embeddings!r}; expected true or false")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; RoPE rotates pairs, so expected an even number")


def check_number(name: str, value: Any) -> float:
    """The value as a float. Raises CheckpointError, naming the field, unless it is a number between -1e30 and 1e30."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:  # neither NaN nor inf
        raise CheckpointError(f"{name} is {repr(value)[:60]}; expected a number")
    return float(value)
