"""Device memory of the emulation: every allocation has its own pages, and ends right before an unreadable page.

A kernel that reads or writes past the end of an array is stopped at once. Bytes that no page can guard are filled with
poison and checked after every launch: up to 15 bytes after the end, and the bytes from the start of the first page to
the array. (An array begins at a multiple of 16 and of no higher power of two; CuPy aligns to 256.)
"""

import ctypes
import mmap

POISON = 0xFF  # NaN, as bfloat16 and as float32
GUARD = 1 << 20  # address space costs nothing

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
PROT_NONE, NORESERVE = 0, 0x4000
POISONED = bytes([POISON]) * 2 * mmap.PAGESIZE


class Allocation:
    """`np.asarray(allocation)` is its bytes. They are unmapped when the last array that views them is freed."""

    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        body = -(-nbytes // 16) * 16  # the array and the bytes up to the end of its last page
        self.mapped = -(-(body + 64) // mmap.PAGESIZE) * mmap.PAGESIZE  # at least 64 bytes of poison before it
        self._area = libc.mmap(
            None, self.mapped + 2 * GUARD, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANON | NORESERVE, -1, 0
        )
        self.begin = self._area + GUARD  # the first readable page
        assert libc.mprotect(self.begin, self.mapped, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        self.address = self.begin + self.mapped - body
        ctypes.memset(self.begin, POISON, self.mapped)

    @property
    def __array_interface__(self) -> dict[str, object]:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def __del__(self) -> None:
        libc.munmap(self._area, self.mapped + 2 * GUARD)

    def intact(self) -> bool:
        """Is the poison around the array unchanged?"""
        end = self.address + self.nbytes
        before, after = self.address - self.begin, self.begin + self.mapped - end
        return not libc.memcmp(self.begin, POISONED, before) and not libc.memcmp(end, POISONED, after)


def allocation_of(array: object) -> Allocation | None:
    """The allocation that holds an array; None for an array in host memory."""
    while array is not None and not isinstance(array, Allocation):
        array = getattr(array, "base", None)
    return array
