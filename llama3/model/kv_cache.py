"""Keys and values of every position seen so far, so that a new token needs one row of work and not a whole pass."""

import numpy as np

from llama3.config import ModelConfig


class Slots:
    """Which slots are taken, and how many positions of each are filled: `lengths[slot]`."""

    def __init__(self, slots: int, max_len: int):
        self.max_len = max_len
        self.lengths = [0] * slots
        self._free = list(range(slots))

    @property
    def free_slots(self) -> tuple[int, ...]:
        return tuple(self._free)

    def allocate(self, slot: int | None = None) -> int:
        """Take a free slot (that one, if named). It keeps what it held: truncate it to what you want of that."""
        slot = self._free[0] if slot is None else slot
        self._free.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        assert slot not in self._free, f"slot {slot} is free already"
        self._free.append(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Rewind a sequence to its first `length` positions. What lies behind them is overwritten, never read."""
        assert 0 <= length <= self.lengths[slot], (length, self.lengths[slot])
        self.lengths[slot] = length

    def advance(self, slot: int, n: int) -> None:
        """The next n positions have been written, in all layers."""
        assert self.lengths[slot] + n <= self.max_len, (self.lengths[slot], n, self.max_len)
        self.lengths[slot] += n


class KVCache(Slots):
    """The cache is an object that is passed to the model: no layer owns any of it. Memory for a slot is
    2 * n_layers * n_kv_heads * head_dim * 4 bytes a position, and the system hands it out only as it is written.
    """

    def __init__(self, config: ModelConfig, slots: int, max_len: int):
        super().__init__(slots, max_len)
        shape = (slots, config.n_layers, config.n_kv_heads, max_len, config.head_dim)
        self.k = np.zeros(shape, np.float32)  # rotated already: RoPE depends on the position alone
        self.v = np.zeros(shape, np.float32)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` positions of slot `source`."""
        assert 0 <= length <= self.lengths[source], (length, self.lengths[source])
        self.k[target, :, :, :length] = self.k[source, :, :, :length]
        self.v[target, :, :, :length] = self.v[source, :, :, :length]
        self.lengths[target] = length

    def write(self, slot: int, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store the new rows of one layer behind the filled positions; return all keys and values so far.

        k, v: (n, n_kv_heads, head_dim) -> two views (n_kv_heads, length + n, head_dim). The length itself grows with
        `advance`, once all layers have written.
        """
        start, end = self.lengths[slot], self.lengths[slot] + len(k)
        assert end <= self.max_len, f"slot {slot} holds {self.max_len} positions, and {end} were asked for"
        self.k[slot, layer, :, start:end] = k.swapaxes(0, 1)
        self.v[slot, layer, :, start:end] = v.swapaxes(0, 1)
        return self.k[slot, layer, :, :end], self.v[slot, layer, :, :end]
