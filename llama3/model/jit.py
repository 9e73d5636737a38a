"""Compiles the kernels of linear_numba.py, linear_amx.py and attention_numba.py with numba (the extra `numba`).

A kernel is compiled for its signature when its file is imported, and never in the middle of an answer. numba keeps the
machine code on disk, beside the source or in the user's cache, per kind of CPU.
"""

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.typing.templates import Signature


def compiled(signature: Signature, fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compile the function for arguments of these types. It releases the GIL while it runs."""

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return njit(signature, nogil=True, cache=True, fastmath=fastmath)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return njit(signature, nogil=True, fastmath=fastmath)(function)  # no folder can be written to

    return compile
