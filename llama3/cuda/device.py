"""The interface between the launch code and a GPU: memory, launches, cuBLAS, graphs.

Only this module works with CuPy. (doctor.py imports CuPy, too, to find out whether it is installed and complete.)
`Device` defines the operations, and refuses calls that a GPU would execute wrongly without an error. `CupyDevice` runs
them on a GPU. The tests use another implementation, which runs the same kernels on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from llama3.cuda.cubin import cubin_file
from llama3.cuda.cublas import WORKSPACE, Cublas, load_library
from llama3.cuda.dependent_launch import driver_for, launch_dependent
from llama3.cuda.launch import Kernel, Launch
from llama3.cuda.pinned import HostCopy, PinnedCopy, UploadRing
from llama3.cuda.source import kernel_source
from llama3.errors import DeviceError

bfloat16 = np.dtype(ml_dtypes.bfloat16)
Array = Any  # a cupy.ndarray on the GPU

MIN_CAPABILITY = 80  # Ampere: the first with bf16 tensor cores and cp.async
DEFAULT_MAX_SHARED = 48 * 1024  # bytes; for more, the kernel's limit must be raised before the launch
SMALL = 64 << 10  # bytes; uploads of at most this size have a ring of their own, of 32 slots
PIECE = 64 << 20  # bytes of a larger upload that go through pinned memory at a time


@dataclass
class Graph:
    """Launches that were recorded once and can be replayed: the same grids, scalars and addresses each time."""

    handle: Any = None
    launches: int = 0  # kernels of ours and products by cuBLAS
    keep: list[Any] = field(default_factory=list)  # the arrays of the launches, so that their memory is not freed


class Device(ABC):
    """A device queues work in the order of the calls; `download` and `sync` wait until the work is done."""

    capability: int = MIN_CAPABILITY  # compute capability times 10: 90 is 9.0
    memory_rate: float = 0  # bytes a second that its memory can move, by its clock; 0: not known
    capturing: Graph | None = None
    gpu: Any  # a context that makes this GPU the current one
    _plainly = False  # the last call queued a library's kernel: the next of ours waits for its end

    @abstractmethod
    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that is not initialised. Raises DeviceError if there is not enough memory."""

    @abstractmethod
    def upload(self, array: np.ndarray, into: Array | None = None) -> Array:
        """Copy to the device: into an array of the same shape and dtype, or into a new one."""

    @abstractmethod
    def download(self, array: Array) -> np.ndarray: ...

    @abstractmethod
    def host_copy(self, source: Array) -> HostCopy:
        """Host memory for copies of a contiguous array, which need not be waited for at once."""

    @abstractmethod
    def copy(self, source: Array, into: Array) -> None:
        """Copy from one place on the device to another. Both arrays have the same shape, and may be strided."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) in bytes."""

    @abstractmethod
    def sync(self) -> None: ...

    @abstractmethod
    def replay(self, graph: Graph) -> None: ...

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared: int = 0,
        dependent: bool = False,
    ) -> None:
        """Queue a kernel, or record it in a capture.

        grid: blocks; block: threads; each in one to three dimensions. args: device arrays and NumPy scalars, in the
        order of the kernel's parameters. shared: bytes of dynamic shared memory a block. dependent: the kernel may
        start before its predecessor has ended, since it calls `wait_for_predecessor` before it touches any memory that
        a kernel writes (programmatic dependent launch).
        """
        # Whether a library's kernel lets its successor start early, and with which promises, is not known.
        dependent, self._plainly = dependent and not self._plainly, False
        launch = Launch(kernel, _three(grid), _three(block), args, shared, dependent)
        self._check(launch)
        if self.capturing:
            self.capturing.launches += 1
            self.capturing.keep += [arg for arg in args if self._owns(arg)]
        self._launch(launch)

    def _check(self, launch: Launch) -> None:
        kernel = launch.kernel
        for i, arg in enumerate(launch.args):
            where = f"{kernel.name}, argument {i}"
            if self._owns(arg):
                if not arg.flags.c_contiguous:  # a kernel gets an address and no strides
                    raise ValueError(f"{where}: the array is strided; a kernel takes contiguous ones")
            elif not isinstance(arg, np.generic):  # a Python float would be passed as a double, an int as 64 bits
                raise TypeError(f"{where}: {type(arg).__name__}; a kernel takes device arrays and NumPy scalars")
        if launch.shared > max(DEFAULT_MAX_SHARED, kernel.max_shared):
            raise ValueError(
                f"{kernel.name}: {launch.shared} bytes of shared memory, and max_shared is {kernel.max_shared}"
            )

    def gemm(self, x: Array, w: Array, out: Array, accumulate: bool = False) -> None:
        """out = x @ w.T, or out += x @ w.T, with float32 accumulators.

        x (T, in) bfloat16, w (out, in) bfloat16, out (T, out) bfloat16 or float32, perhaps some columns of wider rows.
        A capture records it; the first product of a device must be outside of one, because it allocates cuBLAS's
        workspace.
        """
        assert x.ndim == w.ndim == out.ndim == 2, (x.shape, w.shape, out.shape)
        assert x.shape[1] == w.shape[1] and out.shape == (x.shape[0], w.shape[0]), (x.shape, w.shape, out.shape)
        assert x.dtype == w.dtype == bfloat16 and out.dtype in (bfloat16, np.float32), (x.dtype, w.dtype, out.dtype)
        assert x.flags.c_contiguous and w.flags.c_contiguous and out.strides[1] == out.dtype.itemsize
        if self.capturing:
            self.capturing.launches += 1
            self.capturing.keep += [x, w, out]
        self._gemm(x, w, out, accumulate)

    def queue(self, work: Callable[[int, int], None], array: Array) -> None:
        """Queue a library's own kernel, or record it in a capture: work(address of the array, stream)."""
        assert self._owns(array) and array.flags.c_contiguous
        if self.capturing:
            self.capturing.launches += 1
            self.capturing.keep += [array, work]
        self._plainly = True
        self._queue(work, array)

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record the launches of a `with` block instead of running them. Only launches and products are allowed inside.

        Run the same launches once before: the first launch of a kernel compiles it, which a capture does not allow.
        """
        self._not_while_capturing("capture")
        graph = Graph()
        self._begin_capture(graph)
        self.capturing = graph
        try:
            yield graph
        finally:
            self.capturing = None  # first: a capture that cannot be ended must not block all later work
            self._end_capture(graph)

    def _not_while_capturing(self, operation: str) -> None:
        if self.capturing:
            raise RuntimeError(f"{operation} inside a capture: a graph can only hold launches and products")

    @abstractmethod
    def _owns(self, arg: Any) -> bool: ...
    @abstractmethod
    def _launch(self, launch: Launch) -> None: ...
    @abstractmethod
    def _gemm(self, x: Array, w: Array, out: Array, accumulate: bool) -> None: ...
    @abstractmethod
    def _queue(self, work: Callable[[int, int], None], array: Array) -> None: ...
    @abstractmethod
    def _begin_capture(self, graph: Graph) -> None: ...
    @abstractmethod
    def _end_capture(self, graph: Graph) -> None: ...


def memory_rate(runtime: Any, index: int) -> float:
    """Bytes a second: two transfers in each cycle of the memory's clock. runtime: CuPy's."""
    kilohertz = runtime.deviceGetAttribute(runtime.cudaDevAttrMemoryClockRate, index)
    bits = runtime.deviceGetAttribute(runtime.cudaDevAttrGlobalMemoryBusWidth, index)
    return 2e3 * kilohertz * bits / 8


class CupyDevice(Device):
    """One GPU, one stream."""

    def __init__(self, index: int = 0):
        try:
            import cupy
            import cupyx
        except ImportError as error:
            raise DeviceError(f"device cuda needs CuPy ({error}): pip install 'llama3[cuda13]'") from error
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(
                f"device cuda: no usable NVIDIA driver ({error}); `nvidia-smi` should list a GPU"
            ) from error
        if index >= count:
            raise DeviceError(f"device cuda:{index}: this machine has {count} GPU{'s' * (count != 1)}, counted from 0")
        self._cupy, self._cupyx = cupy, cupyx
        self._device = self.gpu = cupy.cuda.Device(index)
        capability = int(self._device.compute_capability)
        if capability < MIN_CAPABILITY:
            raise DeviceError(f"device cuda:{index} has compute capability {capability / 10}; 8.0 or more is needed")
        self.capability, self.memory_rate = capability, memory_rate(cupy.cuda.runtime, index)
        self._driver = driver_for(capability)
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._small, self._large = UploadRing(cupy, cupyx, 32, SMALL), UploadRing(cupy, cupyx, 2, PIECE)
        self._functions: dict[Kernel, Any] = {}

    @contextmanager
    def _current(self) -> Iterator[None]:
        with self._device, self._stream:  # CuPy allocates and launches on the current ones
            yield

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self._not_while_capturing("alloc")  # no object would own this memory after the capture
        with self._current():
            try:
                return self._cupy.empty(shape, dtype)
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                free, total = self._device.mem_info
                needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                raise DeviceError(
                    f"out of GPU memory: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} of {total / 1e9:.1f} GB free"
                ) from error

    def upload(self, array: np.ndarray, into: Array | None = None) -> Array:
        self._not_while_capturing("upload")
        out = self.alloc(array.shape, array.dtype) if into is None else into
        assert out.shape == array.shape and out.dtype == array.dtype, (out.shape, out.dtype, array.shape, array.dtype)
        assert out.flags.c_contiguous
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # a memory-mapped file is not copied here
        ring = self._small if data.size <= SMALL else self._large
        with self._current():
            ring.upload(data, out.data, self._stream)
        return out

    def download(self, array: Array) -> np.ndarray:
        self._not_while_capturing("download")
        with self._current():
            return self._cupy.asnumpy(array, stream=self._stream)

    def host_copy(self, source: Array) -> HostCopy:
        self._not_while_capturing("host_copy")
        assert source.flags.c_contiguous
        with self._current():
            return PinnedCopy(self._cupy, self._cupyx, source, self._stream, self._current)

    def copy(self, source: Array, into: Array) -> None:
        self._not_while_capturing("copy")
        with self._current():
            into.view(np.uint16)[...] = source.view(np.uint16)  # CuPy copies integers of any stride

    def memory(self) -> tuple[int, int]:
        with self._current():
            free, total = self._device.mem_info
            return free + self._cupy.get_default_memory_pool().free_bytes(), total

    def sync(self) -> None:
        self._not_while_capturing("sync")
        with self._current():
            self._stream.synchronize()

    def replay(self, graph: Graph) -> None:
        with self._current():
            graph.handle.launch(self._stream)

    def _owns(self, arg: Any) -> bool:
        return isinstance(arg, self._cupy.ndarray)

    def _launch(self, launch: Launch) -> None:
        with self._current():  # CuPy compiles a kernel for the current GPU, and sets its shared memory's limit there
            function = self._function(launch.kernel)
            if launch.dependent and self.capturing and self._driver:
                launch_dependent(self._driver, self._stream.ptr, function.kernel.ptr, launch)
            else:
                function(launch.grid, launch.block, tuple(launch.args), shared_mem=launch.shared)

    def _function(self, kernel: Kernel) -> Any:
        if kernel not in self._functions:
            try:
                function = self._module(kernel).get_function(kernel.name)
                function.kernel  # noqa: B018 - compiles the kernel, unless it is compiled already
            except self._cupy.cuda.compiler.CompileException as error:
                lines = str(error).splitlines()
                first = next((line for line in lines if ": error" in line), lines[0] if lines else "no message")
                raise DeviceError(f"kernels/{kernel.file} does not compile on this GPU: {first}") from error
            if kernel.max_shared:
                function.max_dynamic_shared_size_bytes = kernel.max_shared
            self._functions[kernel] = function
        return self._functions[kernel]

    def _module(self, kernel: Kernel) -> Any:
        if kernel.architecture:
            return self._cupy.RawModule(path=str(cubin_file(kernel)))
        return self._cupy.RawModule(code=kernel_source(kernel.file), options=kernel.options)

    @cached_property
    def _cublas(self) -> Cublas:
        self._workspace = self.alloc((WORKSPACE,), np.uint8)
        return Cublas(load_library(), self._device, self._stream.ptr, self._workspace.data.ptr)

    def _gemm(self, x: Array, w: Array, out: Array, accumulate: bool) -> None:
        addresses, sizes = (x.data.ptr, w.data.ptr, out.data.ptr), (len(x), *w.shape)
        stride = out.strides[0] // out.dtype.itemsize
        self._cublas.gemm(addresses, sizes, stride, out.dtype == np.float32, accumulate)

    def _queue(self, work: Callable[[int, int], None], array: Array) -> None:
        with self._current():
            work(array.data.ptr, self._stream.ptr)

    def _begin_capture(self, graph: Graph) -> None:
        with self._current():
            self._stream.begin_capture()

    def _end_capture(self, graph: Graph) -> None:
        with self._current():
            graph.handle = self._stream.end_capture()


BACKENDS: dict[str, Callable[[int], Device]] = {"cuda": CupyDevice}


def open_device(name: str) -> Device:
    """`cuda`, or `cuda:1` for the second GPU. Raises DeviceError if there is no such GPU or it is not usable."""
    kind, colon, index = name.partition(":")
    if kind not in BACKENDS or (colon and not index.isdecimal()):
        raise DeviceError(f"device {name}: expected cuda, or cuda:1 for the second GPU")
    return BACKENDS[kind](int(index or 0))


def _three(size: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*size, 1, 1)[:3]
    return x, y, z
