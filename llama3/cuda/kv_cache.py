"""Keys and values of every position seen so far, on the GPU."""

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.arrays import LayerCache
from llama3.cuda.attention import SplitWorkspace
from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.linear import MAX_GRAPH_ROWS, bucket
from llama3.model.kv_cache import Slots


class KVCache(Slots):
    """As `llama3.model.kv_cache.KVCache`, on the GPU. A position takes 4 * n_layers * n_kv_heads * head_dim bytes."""

    dtype = bfloat16

    def __init__(self, device: Device, config: ModelConfig, slots: int, max_len: int):
        """Raises DeviceError if there is not enough memory."""
        super().__init__(slots, max_len)
        shape = (config.n_layers, slots, config.n_kv_heads, max_len, config.head_dim)
        self.device = device
        self.k = device.alloc(shape, bfloat16)  # rotated already, as in the NumPy model
        self.v = device.alloc(shape, bfloat16)
        # Attention runs over at most one row for each slot, or over the rows of a graph, which include padding rows.
        rows = max(slots, min(bucket(slots), MAX_GRAPH_ROWS))
        self.workspace = SplitWorkspace.alloc(device, rows, config.n_heads, config.head_dim, max_len)

    def layer(self, i: int) -> LayerCache:
        return LayerCache(self.k[i], self.v[i])

    def read(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of a slot's filled positions, on the host: two (n_layers, n_kv_heads, length, head_dim)."""
        return self._download(self.k, slot), self._download(self.v, slot)

    def restore(self, slot: int, k: np.ndarray, v: np.ndarray) -> None:
        """Fill a slot with what `read` returned. What it held before is lost."""
        length = k.shape[2]
        assert k.shape == v.shape and k.dtype == v.dtype == bfloat16 and length <= self.max_len, (k.shape, k.dtype)
        self.lengths[slot] = 0
        for array, values in ((self.k, k), (self.v, v)):
            self.device.copy(self.device.upload(np.ascontiguousarray(values)), array[:, slot, :, :length])
        self.lengths[slot] = length

    def _download(self, array: Array, slot: int) -> np.ndarray:
        part = array[:, slot, :, : self.lengths[slot]]
        whole = self.device.alloc(part.shape, bfloat16)
        self.device.copy(part, whole)
        return self.device.download(whole)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        assert 0 <= length <= self.lengths[source], (length, self.lengths[source])
        for array in (self.k, self.v):
            self.device.copy(array[:, source, :, :length], array[:, target, :, :length])
        self.lengths[target] = length
