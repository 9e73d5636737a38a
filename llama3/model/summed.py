"""A matrix whose columns are shared out among processes. Each has a part of every sum, and the parts are added up."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llama3.model.linear import Matrix, linear


class Group(Protocol):
    """The processes that hold a model together."""

    def all_reduce(self, x: np.ndarray) -> np.ndarray: ...  # the sum of the x of all processes, the same bits in each


@dataclass(frozen=True)
class SummedMatrix:
    """`linear` accepts it like any other matrix. x has the columns that belong to this process's part of the matrix."""

    w: np.ndarray | Matrix  # (n_out, n_in / processes)
    group: Group

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (T, n_in / processes) -> the whole product, (T, n_out) float32, in every process"""
        return self.group.all_reduce(linear(x, self.w))
