"""The emulated `llama3.cuda.device.Device`: NumPy arrays in guarded memory, kernels that run as fibers on the CPU."""

import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from llama3.cuda.cublas import WORKSPACE, Cublas
from llama3.cuda.device import Array, Device, Graph
from llama3.cuda.launch import Launch
from llama3.cuda.pinned import HostCopy
from llama3.errors import DeviceError
from tests.cuda.emulator.build import EmulatedKernel, Range, load
from tests.cuda.emulator.build import Launch as LaunchStruct
from tests.cuda.emulator.cublas import FakeCublas
from tests.cuda.emulator.guarded_memory import Allocation, allocation_of

ORDERS = ("forward", "reverse", "shuffled")  # in which the blocks of a grid and the threads of a block run

# From the CUDA programming guide, "technical specifications"
SHARED_LIMIT = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KB a block, by compute capability
STREAM = 0x5EA  # the handle of the only stream
STATIC_LIMIT = 48 * 1024
REGISTERS = 64 * 1024  # of an SM, allocated to warps in units of 256


class EmulationError(Exception):
    """A bug that a GPU would not notice, would refuse, or would crash on."""


class EmulatedDevice(Device):
    gpu = nullcontext()

    def __init__(
        self,
        index: int = 0,
        registers: dict[tuple[str, str, tuple[str, ...]], int] | None = None,
        capability: int = 89,  # of those with the least shared memory
    ):
        self.capability = capability
        self.free = 80 << 30  # bytes; the memory of the emulated GPU
        self.order = "forward"
        self.seed = 0
        self.removed: tuple[str, int] = "", 0  # file and line of a barrier that kernels leave out
        self.registers = registers or {}  # (file, name, defines) -> registers a thread, as the compiler reported them
        self._live: weakref.WeakSet[Allocation] = weakref.WeakSet()
        # The outputs of all launches since the last one that was not dependent, including that one: they may still be
        # running when a dependent launch starts.
        self._in_flight: list[Allocation] = []

    @contextmanager
    def in_order(self, order: str) -> Iterator[None]:
        before, self.order = self.order, order
        try:
            yield
        finally:
            self.order = before

    @contextmanager
    def without_barrier(self, file: str, line: int) -> Iterator[None]:
        """Kernels run as if `__syncthreads();` did not stand in this line of a file of `kernels/`."""
        self.removed = file, line
        try:
            yield
        finally:
            self.removed = "", 0

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self._not_while_capturing("alloc")
        dtype = np.dtype(dtype)
        allocation = Allocation(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._live.add(allocation)
        return np.asarray(allocation).view(dtype).reshape(shape)

    def upload(self, array: np.ndarray, into: Array | None = None) -> Array:
        self._not_while_capturing("upload")
        out = self.alloc(array.shape, array.dtype) if into is None else into
        assert out.shape == array.shape and out.dtype == array.dtype, (out.shape, out.dtype, array.shape, array.dtype)
        out[...] = array
        self._in_flight = []  # a copy waits for all kernels before it, and later kernels wait for the copy
        return out

    def download(self, array: Array) -> np.ndarray:
        self._not_while_capturing("download")
        self._in_flight = []
        return np.array(array)

    def host_copy(self, source: Array) -> HostCopy:
        self._not_while_capturing("host_copy")
        return EmulatedCopy(self, source)

    def copy(self, source: Array, into: Array) -> None:
        self._not_while_capturing("copy")
        into[...] = source
        self._in_flight = []

    @property
    def allocated(self) -> int:
        """Bytes of all arrays that have not been freed."""
        return sum(allocation.nbytes for allocation in self._live)

    def memory(self) -> tuple[int, int]:
        return self.free, max(self.free, 80 << 30)

    def sync(self) -> None:
        self._not_while_capturing("sync")

    # ---- cuBLAS: the launch code's own calls, into a library that computes with NumPy ----

    @cached_property
    def _cublas(self) -> Cublas:
        self._workspace = self.alloc((WORKSPACE,), np.uint8)
        here = weakref.proxy(self)  # the library outlives the device, until Python ends
        self.library = FakeCublas(lambda *at: here._memory(*at), lambda *product: here._queue_product(*product))
        return Cublas(self.library, nullcontext(), STREAM, self._workspace.ctypes.data)

    def _gemm(self, x: Array, w: Array, out: Array, accumulate: bool) -> None:
        addresses, sizes = (x.ctypes.data, w.ctypes.data, out.ctypes.data), (len(x), *w.shape)
        cublas = self._cublas  # its workspace may not fit
        try:
            stride = out.strides[0] // out.dtype.itemsize
            cublas.gemm(addresses, sizes, stride, out.dtype == np.float32, accumulate)
        except DeviceError as error:
            raise EmulationError(f"{error}: {self.library.error}") from self.library.error

    def _allocation_at(self, address: int) -> Allocation:
        for allocation in self._live:
            if allocation.address <= address < allocation.address + allocation.nbytes:
                return allocation
        raise EmulationError(f"cuBLAS: no array in device memory at {address:#x}; was it freed?")

    def _memory(self, address: int, nbytes: int) -> np.ndarray:
        allocation = self._allocation_at(address)
        start = address - allocation.address
        if start + nbytes > allocation.nbytes:
            raise EmulationError(f"cuBLAS: {nbytes} bytes at byte {start} of an allocation of {allocation.nbytes}")
        return np.asarray(allocation)[start : start + nbytes]

    def _queue_product(self, stream: int, product: Callable[[], None], out: int) -> None:
        assert stream == STREAM, stream

        def run() -> None:
            self._in_flight = [self._allocation_at(out)]  # it starts after the kernels before it have ended
            product()

        if self.capturing:
            self.capturing.handle.append(run)
        else:
            run()

    def _queue(self, work: Callable[[int, int], None], array: Array) -> None:
        address = array.ctypes.data

        def run() -> None:
            self._in_flight = [self._allocation_at(address)]  # it starts after the kernels before it have ended
            work(address, STREAM)

        if self.capturing:
            self.capturing.handle.append(run)
        else:
            run()

    def _owns(self, arg: Any) -> bool:
        return isinstance(arg, np.ndarray) and allocation_of(arg) is not None

    # ---- graphs: a capture records launches, and a replay runs them with the recorded arguments ----

    def _begin_capture(self, graph: Graph) -> None:
        graph.handle = []

    def _end_capture(self, graph: Graph) -> None:
        pass

    def replay(self, graph: Graph) -> None:
        self._in_flight = []  # a graph waits for all work before it, and later work waits for the whole graph
        for launch in graph.handle:
            if not isinstance(launch, Launch):  # a product of cuBLAS
                launch()
                continue
            args = [arg() if isinstance(arg, weakref.ref) else arg for arg in launch.args]
            if any(arg is None for arg in args):
                raise EmulationError(f"{launch.kernel.name}: the graph uses an array whose memory was freed")
            self._run(replace(launch, args=args))
        self._in_flight = []

    def _launch(self, launch: Launch) -> None:
        if self.capturing:
            # Arrays by weak reference: a graph holds addresses, and only `Graph.keep` holds the memory.
            args = [weakref.ref(arg) if isinstance(arg, np.ndarray) else arg for arg in launch.args]
            self.capturing.handle.append(replace(launch, args=args))
        else:
            self._run(launch)

    # ---- one launch ----

    def _run(self, launch: Launch) -> None:
        kernel, args = launch.kernel, launch.args
        emulated = load(kernel.file, kernel.name, kernel.defines)
        self._check_size(launch, emulated)
        _check_types(launch, emulated)
        written = [arg for arg, type_ in zip(args, emulated.parameters) if _is_output(type_)]
        if not launch.dependent:
            self._in_flight = []
        self._in_flight += [allocation for array in written if (allocation := allocation_of(array))]
        hidden = list(
            {allocation.begin: Range(allocation.begin, allocation.mapped) for allocation in self._in_flight}.values()
        )

        before = [(array, _around(array)) for array in written]
        message = ctypes.create_string_buffer(1024)
        struct = LaunchStruct(
            launch.grid, launch.block, launch.shared, ORDERS.index(self.order), self.seed, launch.dependent,
            len(hidden), (Range * len(hidden))(*hidden), _addresses(args), self.removed[0].encode(), self.removed[1],
            ctypes.cast(message, ctypes.c_char_p), None,
        )  # fmt: skip
        failed = emulated.run(ctypes.byref(struct))
        if failed:
            where = self._describe(struct.fault, args) if struct.fault else ""
            raise EmulationError(f"{kernel.name}: {message.value.decode()}{where}")
        self._check_surroundings(kernel.name, written, before)

    def _check_surroundings(
        self, name: str, written: list[Array], before: list[tuple[Array, list[np.ndarray]]]
    ) -> None:
        """Has a kernel changed anything but its outputs? before: each output, with copies of the memory around it."""
        if any(not allocation.intact() for allocation in self._live):
            raise EmulationError(f"{name}: wrote outside its arrays")
        for array, outside in before:
            others = [a for a in written if a is not array and allocation_of(a) is allocation_of(array)]
            if not others and any(not np.array_equal(x, y) for x, y in zip(outside, _around(array))):
                raise EmulationError(f"{name}: wrote beside an array of shape {array.shape}, into what surrounds it")

    def _check_size(self, launch: Launch, emulated: EmulatedKernel) -> None:
        kernel, grid, block, shared = launch.kernel, launch.grid, launch.block, launch.shared
        threads, limit = int(np.prod(block)), SHARED_LIMIT[self.capability] * 1024
        if not 1 <= threads <= emulated.max_threads:
            raise EmulationError(
                f"{kernel.name}: {threads} threads a block; its launch bounds say {emulated.max_threads}"
            )
        if not (1 <= grid[0] < 2**31 and 1 <= grid[1] < 2**16 and 1 <= grid[2] < 2**16) or block[2] > 64:
            raise EmulationError(f"{kernel.name}: no GPU takes a grid of {grid} with blocks of {block}")
        if emulated.static_shared > STATIC_LIMIT or emulated.static_shared + shared > limit:
            raise EmulationError(f"{kernel.name}: {emulated.static_shared} + {shared} bytes of shared memory")
        registers = self.registers.get((kernel.file, kernel.name, kernel.defines), 0)
        per_warp = -(-registers * 32 // 256) * 256
        if per_warp * -(-threads // 32) > REGISTERS:
            raise EmulationError(f"{kernel.name}: {threads} threads of {registers} registers do not fit an SM")

    def _describe(self, fault: int, args: Sequence[Any]) -> str:
        """The argument that contains an address, or is nearest to it."""
        arrays = [(i, arg) for i, arg in enumerate(args) if isinstance(arg, np.ndarray)]
        i, array = min(arrays, key=lambda pair: abs(fault - pair[1].ctypes.data))
        return f": byte {fault - array.ctypes.data} of argument {i}, which has {array.nbytes}"


class EmulatedCopy(HostCopy):
    """The host memory holds nothing of use between `start` and `wait`, because a GPU may not have filled it yet."""

    def __init__(self, device: EmulatedDevice, source: Array):
        self._device, self._source = device, source
        self._host = np.empty(source.shape, source.dtype)
        self._arriving = np.empty((0, *source.shape[1:]), source.dtype)

    def start(self, rows: int) -> None:
        self._device._not_while_capturing("host_copy")
        self._device._in_flight = []
        self._arriving = np.array(self._source[:rows])
        self._host.view(np.uint8).fill(0xFF)

    def wait(self) -> np.ndarray:
        rows = len(self._arriving)
        self._host[:rows] = self._arriving
        return self._host[:rows]


def _is_output(type_: str) -> bool:
    return type_.endswith("*") and not type_.startswith("const ")


def _check_types(launch: Launch, emulated: EmulatedKernel) -> None:
    name, args = launch.kernel.name, launch.args
    if len(args) != len(emulated.parameters):
        raise EmulationError(f"{name}: {len(args)} arguments; it takes {', '.join(emulated.parameters)}")
    for i, (arg, type_) in enumerate(zip(args, emulated.parameters)):
        found = arg.dtype.name + "*" * isinstance(arg, np.ndarray)
        if found != type_.removeprefix("const "):
            raise EmulationError(f"{name}, argument {i}: {found}; it takes {type_}")


def _addresses(args: Iterable[Any]) -> Any:
    """The addresses of the arguments' values, as cuLaunchKernel takes them."""
    values = [np.uint64(arg.ctypes.data) if isinstance(arg, np.ndarray) else arg for arg in args]
    buffers = [ctypes.create_string_buffer(value.tobytes(), 8) for value in values]
    pointers = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(buffer) for buffer in buffers))
    pointers.buffers = buffers  # type: ignore[attr-defined]  # kept alive while their addresses are used
    return pointers


def _around(array: np.ndarray) -> list[np.ndarray]:
    """Copies of an allocation's bytes before and after an array that is a part of it."""
    allocation = allocation_of(array)
    assert allocation
    whole, start = np.asarray(allocation), array.ctypes.data - allocation.address
    return [whole[:start].copy(), whole[start + array.nbytes :].copy()]
