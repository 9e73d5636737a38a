"""The keys and values of all positions so far, so that a new token costs one row of work and not a whole pass."""

import numpy as np

from llama3.config import ModelConfig
from llama3.model.pages import zeros_on_demand


class Slots:
    """The slots of a cache: which are taken, and how many positions of each are filled, `lengths[slot]`."""

    def __init__(self, slots: int, max_len: int):
        self.max_len = max_len
        self.lengths = [0] * slots
        self._free = list(range(slots))

    @property
    def free_slots(self) -> tuple[int, ...]:
        return tuple(self._free)

    def allocate(self, slot: int | None = None) -> int:
        """Take a free slot, or the one that is named. It keeps its old positions: truncate it to those you want."""
        slot = self._free[0] if slot is None else slot
        self._free.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        assert slot not in self._free, f"slot {slot} is free already"
        self._free.append(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Shorten a sequence to its first `length` positions. Later ones are overwritten before they are read."""
        assert 0 <= length <= self.lengths[slot], (length, self.lengths[slot])
        self.lengths[slot] = length

    def advance(self, slot: int, n: int) -> None:
        """Count n more positions as filled, once all layers have written them."""
        assert self.lengths[slot] + n <= self.max_len, (self.lengths[slot], n, self.max_len)
        self.lengths[slot] += n


class KVCache(Slots):
    """Keys and values of every layer, passed to the model as an argument: no layer owns any state.

    A position takes 2 * n_layers * n_kv_heads * head_dim * 4 bytes, from the time when it is first written.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, config: ModelConfig, slots: int, max_len: int):
        super().__init__(slots, max_len)
        shape = (slots, config.n_layers, config.n_kv_heads, max_len, config.head_dim)
        self.k = zeros_on_demand(shape)  # (slots, n_layers, n_kv_heads, max_len, head_dim), already rotated
        self.v = zeros_on_demand(shape)  # (slots, n_layers, n_kv_heads, max_len, head_dim)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""
        assert 0 <= length <= self.lengths[source], (length, self.lengths[source])
        self.k[target, :, :, :length] = self.k[source, :, :, :length]
        self.v[target, :, :, :length] = self.v[source, :, :, :length]
        self.lengths[target] = length

    def read(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of a slot's filled positions: two views (n_layers, n_kv_heads, length, head_dim)."""
        length = self.lengths[slot]
        return self.k[slot, :, :, :length], self.v[slot, :, :, :length]

    def restore(self, slot: int, k: np.ndarray, v: np.ndarray) -> None:
        """Fill a slot with what `read` returned. What it held before is lost."""
        length = k.shape[2]
        assert k.shape == v.shape and k.dtype == v.dtype == self.dtype and length <= self.max_len, (k.shape, k.dtype)
        self.lengths[slot] = 0
        self.k[slot, :, :, :length], self.v[slot, :, :, :length] = k, v
        self.lengths[slot] = length

    def write(self, slot: int, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store one layer's new rows behind the filled positions, and return all of its keys and values so far.

        k, v (n, n_kv_heads, head_dim) -> two views (n_kv_heads, length + n, head_dim). `advance` changes the length,
        after all layers have written.
        """
        start, end = self.lengths[slot], self.lengths[slot] + len(k)
        assert end <= self.max_len, f"slot {slot} holds {self.max_len} positions, and {end} are needed"
        self.k[slot, layer, :, start:end] = k.swapaxes(0, 1)
        self.v[slot, layer, :, start:end] = v.swapaxes(0, 1)
        return self.k[slot, layer, :, :end], self.v[slot, layer, :, :end]
