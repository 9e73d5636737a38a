"""A simulated CuPy with two GPUs, as strict and as late as GPUs may be.

It refuses every use of what belongs to the other GPU: memory, streams, events, functions, graphs, cuBLAS handles. A
function that was compiled, or whose shared memory's limit was raised, on one GPU is not on the other. A stream works
only when the host waits for it, so a piece of host memory that is reused too early shows in the data.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

DEFAULT_LIMIT = 48 * 1024  # bytes of dynamic shared memory


class Refused(Exception):
    """What CUDA reports as an invalid handle, an invalid value or an illegal address."""


class Gpus:
    def __init__(self, capability: str = "80") -> None:
        self.capability = capability
        self.devices = [0]  # the stack of current devices
        self.streams: list[Stream] = []  # the stack of current streams
        self.kernels: dict[str, Callable[..., None]] = {}  # by name: what a launch does to NumPy arrays
        self.fail_at_end_of_capture = False

    @property
    def current(self) -> int:
        return self.devices[-1]

    def check(self, what: str, owner: int) -> None:
        if owner != self.current:
            raise Refused(f"{what} of GPU {owner}, and the current one is GPU {self.current}")

    def current_stream(self) -> "Stream":
        stream = self.streams[-1]
        self.check("the current stream", stream.owner)
        return stream

    def modules(self) -> dict[str, Any]:
        """What `import cupy` and `cupyx` give."""
        gpus = self
        runtime = SimpleNamespace(
            getDeviceCount=lambda: 2,
            CUDARuntimeError=RuntimeError,
            deviceGetAttribute=lambda attribute, index: 1,
            cudaDevAttrMemoryClockRate=36,
            cudaDevAttrGlobalMemoryBusWidth=37,
        )
        cuda = SimpleNamespace(
            runtime=runtime,
            Device=lambda index: Current(gpus, index),
            Stream=lambda non_blocking: Stream(gpus),
            Event=lambda disable_timing=False: Event(gpus),
            memory=SimpleNamespace(OutOfMemoryError=MemoryError),
            compiler=SimpleNamespace(CompileException=SyntaxError),
        )
        cupy = SimpleNamespace(
            cuda=cuda,
            ndarray=DeviceArray,
            empty=lambda shape, dtype: DeviceArray.of(gpus, shape, dtype),
            RawModule=lambda code, options: Module(gpus),
            asnumpy=lambda array, stream: asnumpy(gpus, array, stream),
            get_default_memory_pool=lambda: SimpleNamespace(free_bytes=lambda: 0),
        )
        return {"cupy": cupy, "cupyx": SimpleNamespace(empty_pinned=np.empty)}

    def cublas(self) -> SimpleNamespace:
        """What `llama3.cuda.cublas.load_library` gives: a handle belongs to the GPU on which it was made."""

        def create(handle: Any) -> int:
            handle._obj.value = 1 + self.current  # ctypes.byref(handle)
            return 0

        def use(handle: Any, *_: Any) -> int:
            self.check("the cuBLAS handle", handle.value - 1)
            return 0

        names = ("Destroy_v2", "SetStream_v2", "SetWorkspace_v2", "SetMathMode", "GemmEx")
        return SimpleNamespace(
            cublasCreate_v2=LibraryFunction(create), **{f"cublas{name}": LibraryFunction(use) for name in names}
        )


class LibraryFunction:
    """A function of a library that ctypes has loaded: one can set its types."""

    def __init__(self, call: Callable[..., int]):
        self.call, self.argtypes = call, None

    def __call__(self, *args: Any) -> int:
        return self.call(*args)


class Current:
    """cupy.cuda.Device: a context in which it is the current GPU."""

    def __init__(self, gpus: Gpus, index: int):
        self.gpus, self.index = gpus, index
        self.compute_capability = gpus.capability
        self.mem_info = (60 << 30, 80 << 30)

    def __enter__(self) -> None:
        self.gpus.devices.append(self.index)

    def __exit__(self, *_: Any) -> None:
        self.gpus.devices.pop()


class Stream:
    def __init__(self, gpus: Gpus):
        self.gpus, self.owner, self.ptr = gpus, gpus.current, 1000 + gpus.current
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def __enter__(self) -> None:
        self.gpus.streams.append(self)

    def __exit__(self, *_: Any) -> None:
        self.gpus.streams.pop()

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def work_until(self, end: int) -> None:
        done, self.queue = self.queue[:end], self.queue[end:]
        for work in done:
            work()

    def synchronize(self) -> None:
        self.gpus.check("the stream", self.owner)
        self.work_until(len(self.queue))

    def begin_capture(self) -> None:
        self.gpus.check("the stream", self.owner)
        self.recording = []

    def end_capture(self) -> "RecordedGraph":
        assert self.recording is not None
        recorded, self.recording = self.recording, None
        if self.gpus.fail_at_end_of_capture:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return RecordedGraph(self.gpus, self.owner, recorded)


class RecordedGraph:
    def __init__(self, gpus: Gpus, owner: int, recorded: list[Callable[[], None]]):
        self.gpus, self.owner, self.recorded = gpus, owner, recorded

    def launch(self, stream: Stream) -> None:
        self.gpus.check("the graph", self.owner)
        self.gpus.check("the stream", stream.owner)
        for work in self.recorded:
            stream.add(work)


class Event:
    def __init__(self, gpus: Gpus):
        self.gpus, self.owner = gpus, gpus.current
        self.recorded = self.reached = 0  # how often

    def record(self, stream: Stream) -> None:
        self.gpus.check("the event", self.owner)
        self.gpus.check("the stream", stream.owner)
        self.stream, self.recorded = stream, self.recorded + 1
        number = self.recorded
        stream.add(lambda: setattr(self, "reached", number))

    def synchronize(self) -> None:
        """The stream works until it has reached the last place where the event was recorded, and no further."""
        while self.reached < self.recorded:
            self.stream.work_until(1)


class DeviceArray(np.ndarray):
    """cupy.ndarray: memory of one GPU, which the host sees only through copies."""

    gpus: Gpus
    owner: int

    @classmethod
    def of(cls, gpus: Gpus, shape: tuple[int, ...], dtype: Any) -> "DeviceArray":
        array = np.empty(shape, dtype).view(cls)
        array.gpus, array.owner = gpus, gpus.current
        return array

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, DeviceArray) and hasattr(source, "gpus"):
            self.gpus, self.owner = source.gpus, source.owner

    @property
    def data(self) -> "Pointer":  # type: ignore[override]
        return Pointer(self, 0)

    def __setitem__(self, index: Any, value: Any) -> None:
        """A kernel that copies, on the current stream."""
        for array in (self, value):
            self.gpus.check("an array", array.owner)
        self.gpus.current_stream().add(lambda: np.asarray(self).__setitem__(index, np.asarray(value)))


class Pointer:
    """cupy.cuda.MemoryPointer."""

    def __init__(self, array: DeviceArray, offset: int):
        self.array, self.ptr = array, array.ctypes.data + offset
        self.offset = offset

    def __add__(self, offset: int) -> "Pointer":
        return Pointer(self.array, self.offset + offset)

    def copy_from_host_async(self, host: ctypes.c_void_p, size: int, stream: Stream) -> None:
        self._copy(self.ptr, host.value, size, stream)

    def copy_to_host_async(self, host: ctypes.c_void_p, size: int, stream: Stream) -> None:
        self._copy(host.value, self.ptr, size, stream)

    def _copy(self, target: int | None, source: int | None, size: int, stream: Stream) -> None:
        gpus = self.array.gpus
        gpus.check("an array", self.array.owner)
        gpus.check("the stream", stream.owner)
        assert target and source and 0 <= self.offset <= self.array.nbytes - size, (self.offset, size)
        stream.add(lambda: ctypes.memmove(target, source, size) and None)


def asnumpy(gpus: Gpus, array: DeviceArray, stream: Stream) -> np.ndarray:
    gpus.check("an array", array.owner)
    stream.synchronize()
    return np.array(np.asarray(array))


class Module:
    def __init__(self, gpus: Gpus):
        self.gpus = gpus

    def get_function(self, name: str) -> "Function":
        return Function(self.gpus, name)


class Function:
    """cupy.RawKernel: it is compiled for the GPU that is current when it is first needed there."""

    def __init__(self, gpus: Gpus, name: str):
        self.gpus, self.name = gpus, name
        self.limits: dict[int, int] = {}  # of each GPU for which it is compiled: the limit of its shared memory

    @property
    def kernel(self) -> SimpleNamespace:
        gpus = self.gpus
        if gpus.current not in self.limits:
            if any(stream.recording is not None for stream in gpus.streams):
                raise Refused("a module is loaded inside a capture")
            self.limits[gpus.current] = DEFAULT_LIMIT
        return SimpleNamespace(ptr=2000 + gpus.current)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.kernel and self.limits[self.gpus.current]

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        assert self.kernel
        self.limits[self.gpus.current] = size

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...], shared_mem: int) -> None:
        gpus, stream = self.gpus, self.gpus.current_stream()
        assert self.kernel
        if shared_mem > self.limits[gpus.current]:
            raise Refused(f"{self.name}: {shared_mem} bytes of shared memory; the limit is {self.limits[gpus.current]}")
        for arg in args:
            if isinstance(arg, DeviceArray):
                gpus.check("an array", arg.owner)
        values = [np.asarray(arg) if isinstance(arg, DeviceArray) else arg for arg in args]
        stream.add(lambda: gpus.kernels[self.name](*values))
