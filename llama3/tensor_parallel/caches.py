"""Every rank has a cache of its own heads. Rank 0 decides what becomes of it, and the others repeat that.

What rank 0 does with its caches between two steps is noted here. The next step begins with these notes, and with the
lengths of the slots that it uses. So a shortened or reused slot needs no message of its own.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import finalize

from llama3.errors import RequestError
from llama3.model.batch import Batch
from llama3.model.kv_cache import Slots

Note = tuple[Any, ...]  # ("new", cache, slots, max_len), ("copy", cache, source, target, length), ("drop", cache)


@dataclass(frozen=True)
class Step:
    """What a rank needs to run the same step as rank 0."""

    notes: list[Note]
    cache: int
    starts: list[int]  # for each sequence of the batch, how many positions of its slot are filled
    batch: Batch


class Notes:
    """Rank 0's notes. Any thread may add one."""

    def __init__(self) -> None:
        self.queue: deque[Note] = deque()
        self._numbers = itertools.count()

    def next_number(self) -> int:
        return next(self._numbers)

    def take(self) -> list[Note]:
        taken = []
        while self.queue:
            taken.append(self.queue.popleft())
        return taken


class Mirrored(Slots):
    """Rank 0's cache: put before a class of caches, it notes what happens, and drops the others' with this one."""

    def mirror(self, notes: Notes, slots: int) -> None:
        """Begin to note, with the cache itself."""
        self.number, self.notes = notes.next_number(), notes
        notes.queue.append(("new", self.number, slots, self.max_len))
        finalize(self, notes.queue.append, ("drop", self.number)).atexit = False

    def step(self, batch: Batch) -> Step:
        return Step(self.notes.take(), self.number, [self.lengths[slot] for slot in batch.slots], batch)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.notes.queue.append(("copy", self.number, source, target, length))
        super().copy_prefix(source, target, length)  # type: ignore[misc]  # of the class behind this one

    def read(self, slot: int) -> NoReturn:
        raise RequestError("a prefix cannot be saved from several ranks, each of which has some heads; use one device")

    def restore(self, slot: int, k: Any, v: Any) -> NoReturn:
        raise RequestError("a prefix cannot be loaded into several ranks, each of which has some heads; use one device")


class Mirrors:
    """The caches of another rank."""

    def __init__(self, new_cache: Callable[[int, int], Any]):
        self._new_cache, self._caches = new_cache, dict[int, Any]()

    def prepare(self, step: Step) -> Any:
        """Do what the notes say, and set the lengths -> the step's cache."""
        for kind, number, *values in step.notes:
            if kind == "new":
                self._caches[number] = self._new_cache(*values)
            elif kind == "drop":
                del self._caches[number]
            else:
                source, target, length = values
                self._caches[number].lengths[source] = length
                self._caches[number].copy_prefix(source, target, length)
        cache = self._caches[step.cache]
        for slot, start in zip(step.batch.slots, step.starts):
            cache.lengths[slot] = start
        return cache
