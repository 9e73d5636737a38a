"""Keys and values of every position seen so far, on the GPU."""

from llama3.config import ModelConfig
from llama3.cuda.arrays import LayerCache
from llama3.cuda.attention import SplitWorkspace
from llama3.cuda.device import Device, bfloat16
from llama3.cuda.linear import MAX_FEW, bucket
from llama3.model.kv_cache import Slots


class KVCache(Slots):
    """The twin of `llama3.model.kv_cache.KVCache`. A position takes 4 * n_layers * n_kv_heads * head_dim bytes."""

    def __init__(self, device: Device, config: ModelConfig, slots: int, max_len: int):
        """Raises DeviceError if there is not enough memory."""
        super().__init__(slots, max_len)
        shape = (config.n_layers, slots, config.n_kv_heads, max_len, config.head_dim)
        self.device = device
        self.k = device.alloc(shape, bfloat16)  # rotated already, as in the NumPy model
        self.v = device.alloc(shape, bfloat16)
        rows = max(slots, min(bucket(slots), MAX_FEW))  # a step has one single row a slot, or as many as a graph has
        self.workspace = SplitWorkspace.alloc(device, rows, config.n_heads, config.head_dim, max_len)

    def layer(self, i: int) -> LayerCache:
        return LayerCache(self.k[i], self.v[i])

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` positions of slot `source`."""
        assert 0 <= length <= self.lengths[source], (length, self.lengths[source])
        for array in (self.k, self.v):
            self.device.copy(array[:, source, :, :length], array[:, target, :, :length])
        self.lengths[target] = length
