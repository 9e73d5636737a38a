"""Keys and values of every position seen so far, on the GPU."""

from typing import TYPE_CHECKING

from llama3.config import ModelConfig
from llama3.cuda.attention import new_workspace
from llama3.cuda.device import Device, bfloat16
from llama3.cuda.linear import MAX_FEW
from llama3.model.kv_cache import Slots

if TYPE_CHECKING:
    from llama3.cuda.decoding import Decoding


class KVCache(Slots):
    """As `llama3.model.kv_cache.KVCache`, layer by layer: 4 * n_layers * n_kv_heads * head_dim bytes a position."""

    def __init__(self, device: Device, config: ModelConfig, slots: int, max_len: int):
        """Raises DeviceError if it does not fit."""
        super().__init__(slots, max_len)
        shape = (config.n_layers, slots, config.n_kv_heads, max_len, config.head_dim)
        self.device = device
        self.k = device.alloc(shape, bfloat16)  # turned already, as the NumPy model's
        self.v = device.alloc(shape, bfloat16)
        rows = max(slots, min(bucket(slots), MAX_FEW))  # single rows of a step: one a slot
        self.workspace = new_workspace(device, rows, config.n_heads, config.head_dim, max_len)
        self.decoding: Decoding | None = None  # the graphs that know this cache's addresses

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` positions of slot `source`."""
        assert 0 <= length <= self.lengths[source], (length, self.lengths[source])
        for array in (self.k, self.v):
            self.device.copy(array[:, source, :, :length], array[:, target, :, :length])
        self.lengths[target] = length


def bucket(rows: int) -> int:
    """The next power of two: a graph is recorded for so many rows."""
    return 1 << (rows - 1).bit_length()
