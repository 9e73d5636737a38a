"""The GPUs that hold a model together, as the launch code sees them. docs/tensor_parallel.md explains how."""

from typing import Any, Protocol

from llama3.cuda.device import Array


class Group(Protocol):
    """A GPU's place among the others. What it queues can stand in a graph, as a launch can."""

    rank: int  # of this GPU, from 0

    def all_reduce(self, x: Array) -> None:
        """Queue: x float32 becomes the sum of the x of all ranks."""

    def broadcast(self, x: Array) -> None:
        """Queue: x int32 becomes that of rank 0."""

    def announce(self, kind: str, *what: Any) -> None:
        """Rank 0 tells the others what it launches now, so that they launch the same. The others tell nobody."""
