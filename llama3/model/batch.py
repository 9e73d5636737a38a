"""The rows of one step: the new tokens of one sequence or of many, one sequence after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Sequence i owns the next `counts[i]` rows, and its keys and values are in cache slot `slots[i]`.

    There is no batch axis. A prompt is many rows of one sequence, decoding is one row of each of many sequences, and a
    step may mix the two. Positions are not stored: they follow from the lengths in the cache.
    """

    tokens: np.ndarray  # (T,) int32
    slots: tuple[int, ...]  # (n_sequences,), all different
    counts: tuple[int, ...]  # (n_sequences,), each at least 1; their sum is T
    adapters: tuple[str | None, ...] = ()  # (n_sequences,), the name of each LoRA adapter; empty: no sequence has one

    def __post_init__(self) -> None:
        assert self.tokens.ndim == 1 and self.tokens.dtype == np.int32, (self.tokens.shape, self.tokens.dtype)
        assert len(self.slots) == len(self.counts) == len(set(self.slots)), (self.slots, self.counts)
        assert len(self.adapters) in (0, len(self.slots)), (self.adapters, self.slots)
        assert min(self.counts) >= 1 and sum(self.counts) == len(self.tokens), (self.counts, len(self.tokens))

    @classmethod
    def of(cls, rows: Sequence[tuple[int, Sequence[int] | np.ndarray]], adapters: Sequence[str | None] = ()) -> "Batch":
        """From pairs of a slot and its new tokens: `Batch.of([(0, prompt), (3, [token])])`."""
        tokens = np.fromiter(chain.from_iterable(tokens for _, tokens in rows), np.int32)
        slots, counts = tuple(slot for slot, _ in rows), tuple(len(tokens) for _, tokens in rows)
        return cls(tokens, slots, counts, tuple(adapters) if any(adapters) else ())

    @property
    def last_rows(self) -> np.ndarray:
        """(n_sequences,): the index of each sequence's last row, whose logits predict its next token."""
        return np.cumsum(self.counts) - 1

    @property
    def spans(self) -> list[slice]:
        """The rows of each sequence."""
        return [slice(end - count, end) for end, count in zip(np.cumsum(self.counts).tolist(), self.counts)]
