"""Kernels that numba compiles: loops in Python whose argument types are known beforehand.

numba is optional and slow to import, so this module imports it only when a kernel is compiled.
"""

import gc
import inspect
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Kernel:
    """A function that numba compiles at `compile`, or else at its first call. `py_func` is the function in Python.

    It releases the GIL while it runs. The compiled code is kept on disk where there is a folder that can be written,
    beside the source file or in the user's cache folder.
    """

    def __init__(self, py_func: Callable[..., Any], signatures: tuple[str, ...], options: dict[str, Any]) -> None:
        self.py_func, self._signatures, self._options = py_func, signatures, options
        self._lock = threading.Lock()
        self._compiled: Any = None

    def compile(self) -> Any:
        """numba's dispatcher, compiled for exactly these signatures."""
        from numba import njit

        options = {"nogil": True, "no_cfunc_wrapper": True, **self._options}  # no code calls a kernel from C
        with self._lock:
            if self._compiled is None:
                try:
                    self._compiled = njit(list(self._signatures), cache=True, **options)(self.py_func)
                except (RuntimeError, OSError):  # no folder can be written, or its disk is full
                    self._compiled = njit(list(self._signatures), **options)(self.py_func)
        return self._compiled

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compile())(*arguments)


@contextmanager
def without_collections() -> Iterator[None]:
    """To load numba and its kernels in: these are many objects that stay, and the collector would look through them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else the caller has frozen objects, which should stay frozen
            gc.freeze()
            gc.unfreeze()  # from here they are old objects, which the next collection of young ones passes over
        gc.enable()


def compiled(
    *signatures: str, uses: Sequence[ModuleType] = (), **options: Any
) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a kernel with its signatures, for instance "void(float32[:, ::1], int64)"; options are njit's.

    The signature of an array that may be read-only, as mapped weights are, is Array(uint16, 2, 'C', readonly=True).
    It accepts writable arrays, too. uses: other modules with instructions that the kernel is made of. numba's cache
    takes a kernel to be new only if the file with the kernel itself has changed, but it goes by the kernel's name, too.
    """

    def decorate(py_func: Callable[..., Any]) -> Kernel:
        if uses:
            source = "".join(map(inspect.getsource, uses))
            py_func.__qualname__ += f"_{zlib.crc32(source.encode()):08x}"
        return Kernel(py_func, signatures, options)

    return decorate
