"""A stand-in for CuPy, in sys.modules. It has what llama3/cuda/device.py and the benchmarks call, and nothing else."""

import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import ml_dtypes
import numpy as np

from llama3.cuda.launch import Kernel, Launch
from llama3.cuda.source import kernel_source
from tests.cuda.stand_ins.card import SMALL, Card, OutOfMemory, StandInError, address_space
from tests.cuda.stand_ins.cupy_objects import Device, Event, Stream, ndarray
from tests.cuda.stand_ins.kernel_text import KernelText, kernels_of

BF16 = np.dtype(ml_dtypes.bfloat16)
HANDLE = 4711  # of cuBLAS
ATTRIBUTES = {36: 2_619_000, 37: 5120}  # of an H100: its memory's clock in kHz, and the bits of its bus


class RawKernel:
    """What `RawModule.get_function` returns."""

    def __init__(self, module: "Installed", text: KernelText, defines: tuple[str, ...]):
        self._installed, self._card, self._text, self._defines = module, module.card, text, defines
        self.max_dynamic_shared_size_bytes = 0

    @property
    def kernel(self) -> Any:
        self._installed.kernels[id(self)] = self
        return type("Function", (), {"ptr": id(self)})()

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        if not (self._installed.stream.depth and self._installed.device.depth):
            raise StandInError(f"{self._text.name} goes to a stream of somebody else")
        for i, arg in enumerate(args):
            if not isinstance(arg, ndarray | np.generic):
                raise StandInError(f"{self._text.name}, argument {i}: {type(arg).__name__}")
            if isinstance(arg, ndarray) and not arg.flags.c_contiguous:
                raise StandInError(f"{self._text.name}, argument {i}: the array is strided")
        self._text.check_types([arg.dtype.name + "*" * isinstance(arg, ndarray) for arg in args])
        self.launched(grid, block, shared_mem, [arg._host if isinstance(arg, ndarray) else arg for arg in args])

    def launched(self, grid: Any, block: Any, shared: int, values: list[Any]) -> None:
        self._text.check(grid, block, shared, self.max_dynamic_shared_size_bytes)
        kernel = Kernel(self._text.file, self._text.name, self._defines, self.max_dynamic_shared_size_bytes)
        launch = Launch(kernel, grid, block, values, shared)
        run = lambda: self._card.emulator and self._card.emulator._run(launch)  # noqa: E731
        run() if self._card.capturing is None else self._card.capturing.append(run)


class Driver:
    """`cuda.bindings.driver`: NVIDIA's own types, and the one call that needs a GPU."""

    def __init__(self, installed: "Installed", bindings: ModuleType):
        self._installed, self._bindings = installed, bindings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def cuLaunchKernelEx(self, config: Any, function: Any, parameters: Any, extra: int) -> tuple[Any]:
        kernel = self._installed.kernels[int(function)]
        values, types = parameters
        wanted = [ctypes.c_void_p if kind.endswith("*") else C_TYPES[kind] for kind in kernel._text.parameters]
        if list(types) != wanted or len(values) != len(types) or extra:
            raise StandInError(f"{kernel._text.name}: {types}; it takes {kernel._text.parameters}")
        if int(config.hStream) != self._installed.stream.ptr or config.numAttrs != len(config.attrs):
            raise StandInError(f"{kernel._text.name}: launched on another stream, or with other attributes")
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        block = config.blockDimX, config.blockDimY, config.blockDimZ
        kernel.launched(grid, block, config.sharedMemBytes, list(values))
        return (self._bindings.CUresult.CUDA_SUCCESS,)


C_TYPES = {
    "int32": ctypes.c_int32, "uint32": ctypes.c_uint32, "int64": ctypes.c_int64, "uint64": ctypes.c_uint64,
    "float32": ctypes.c_float, "float64": ctypes.c_double,
}  # fmt: skip


class Installed:
    """The modules, and the objects that they share."""

    def __init__(self, card: Card):
        self.card, self.kernels = card, {}
        self.device = Device(card, 0)
        self.stream: Stream | None = None
        self.storages: WeakValueDictionary[int, Any] = WeakValueDictionary()  # addresses of torch's, by their handles

    # ---- functions of CuPy

    def empty(self, shape: tuple[int, ...], dtype: Any = float) -> ndarray:
        self.card.not_while_capturing("an allocation")
        try:
            return ndarray(self.card, self.card.memory(tuple(map(int, shape)), np.dtype(dtype)))
        except OutOfMemory as error:
            raise OutOfMemoryError(str(error)) from error

    def asnumpy(self, a: ndarray, stream: Stream | None = None) -> np.ndarray:
        self.card.not_while_capturing("a copy to the host")
        assert isinstance(stream, Stream), "a copy on the default stream would not wait for ours"
        return np.array(a._host) if self.card.emulator or a.nbytes <= SMALL else np.zeros(a.shape, a.dtype)

    def from_dlpack(self, array: Any) -> ndarray:
        """The memory of a tensor of the stand-in for torch. It is not counted twice."""
        if array.device.type != self.card.torch_device or array.requires_grad:
            raise StandInError(f"a tensor on {array.device}, requires_grad {array.requires_grad}")
        if self.card.torch_busy:
            raise StandInError("torch may still write this memory: torch.cuda.synchronize() comes first")
        storage = array.untyped_storage()
        whole = self.storages.get(storage._cdata)
        if whole is None:
            whole = self.storages[storage._cdata] = address_space(storage.nbytes())
            whole.storage = storage  # as long as there is an array of it, torch's memory is not freed
        dtype = BF16 if str(array.dtype) == "torch.bfloat16" else np.dtype(str(array.dtype).removeprefix("torch."))
        begin = array.storage_offset() * dtype.itemsize
        strides = [stride * dtype.itemsize for stride in array.stride()]
        flat = whole[begin : begin + array.numel() * dtype.itemsize].view(dtype)
        return ndarray(self.card, np.lib.stride_tricks.as_strided(flat, tuple(array.shape), strides))

    def raw_module(self, *, code: str | None = None, path: str | None = None, options: tuple[str, ...] = ()) -> Any:
        """From a kernel's text, or from a file that `compiled_files` has written."""
        if (code is None) == (path is None) or not all(option.startswith(("-D", "-std=c++17")) for option in options):
            raise StandInError(f"a module with options {options}")
        defines = tuple(option[2:] for option in options if option.startswith("-D"))
        text = Path(path).read_text(encoding="utf-8") if path else code
        kernels = kernels_of(str(text), dict(define.split("=") for define in defines if "=" in define))

        def get_function(name: str) -> RawKernel:
            if name not in kernels:
                raise CompileException(f"named symbol not found: {name}")
            return RawKernel(self, kernels[name], defines)

        return module("RawModule", get_function=get_function)

    def make_stream(self, *, non_blocking: bool = False) -> Stream:
        self.stream = Stream(self.card, non_blocking)
        return self.stream

    def gemm_ex(self, *args: Any) -> None:
        """A row-major out = x w^T, or out += x w^T, as llama3/cuda/device.py asks cuBLAS for it."""
        handle, op_a, op_b, n_out, rows, width, one, w, w_type, ldw, x, x_type, ldx, beta, out, out_type, ldo = args[
            :17
        ]
        self.card.not_while_capturing("cuBLAS through CuPy")
        assert (handle, op_a, op_b, args[17:]) == (HANDLE, 1, 0, (68, -1)), args
        assert (w_type, x_type, ldw, ldx, ldo) == (14, 14, width, width, n_out) and out_type in (0, 14), args
        if self.card.emulator:
            factors = [ctypes.c_float.from_address(at).value for at in (one, beta)]
            kinds = {14: BF16, 0: np.dtype(np.float32)}
            a, b, c = (
                array_at(at, shape, kinds[kind])
                for at, shape, kind in ((x, (rows, width), 14), (w, (n_out, width), 14), (out, (rows, n_out), out_type))
            )
            product = a.astype(np.float32) @ b.astype(np.float32).T
            c[...] = factors[0] * product + (factors[1] * c.astype(np.float32) if factors[1] else 0)


def array_at(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype).reshape(shape)


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):
    pass


class CUDARuntimeError(RuntimeError):
    pass


def module(name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(attributes)
    return made


def modules(installed: Installed) -> dict[str, ModuleType]:
    card = installed.card
    runtime = module(
        "runtime", getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError,
        deviceGetAttribute=lambda attribute, index: ATTRIBUTES[attribute],
        cudaDevAttrMemoryClockRate=36, cudaDevAttrGlobalMemoryBusWidth=37,
    )  # fmt: skip
    cuda = module(
        "cupy.cuda", runtime=runtime, Device=lambda index: installed.device, Stream=installed.make_stream, Event=Event,
        memory=module("memory", OutOfMemoryError=OutOfMemoryError),
        compiler=module("compiler", CompileException=CompileException),
        device=module("device", get_cublas_handle=lambda: HANDLE),
    )  # fmt: skip
    pool = module(
        "pool",
        free_bytes=lambda: card.cupy.reserved - card.cupy.live,
        free_all_blocks=card.cupy.trim,
    )
    cupy = module(
        "cupy", __version__="stand-in", cuda=cuda, ndarray=ndarray, empty=installed.empty, asnumpy=installed.asnumpy,
        from_dlpack=installed.from_dlpack, RawModule=installed.raw_module, get_default_memory_pool=lambda: pool,
    )  # fmt: skip
    cublas = module(
        "cublas", gemmEx=installed.gemm_ex, CUBLAS_OP_T=1, CUBLAS_OP_N=0, CUBLAS_COMPUTE_32F=68, CUBLAS_GEMM_DEFAULT=-1
    )
    libs = module("cupy_backends.cuda.libs", cublas=cublas)
    return {
        "cupy": cupy,
        "cupyx": module("cupyx", empty_pinned=lambda shape, dtype=float: np.empty(shape, dtype)),
        "cupy_backends": module("cupy_backends", cuda=module("cupy_backends.cuda", libs=libs)),
        "cupy_backends.cuda": module("cupy_backends.cuda", libs=libs),
        "cupy_backends.cuda.libs": libs,
    }


@contextmanager
def installed(card: Card) -> Iterator[Installed]:
    one = Installed(card)
    found: dict[str, Any] = dict(modules(one))
    if card.emulator:
        found["cuda.bindings"] = None  # launches do not overlap: the emulator wants arrays, not addresses
    else:
        try:
            from cuda.bindings import driver

            found["cuda.bindings"] = module("cuda.bindings", driver=Driver(one, driver))
        except ImportError:
            pass
    with modules_replaced(found), cublas_library(one), compiled_files():
        yield one


@contextmanager
def modules_replaced(found: dict[str, Any]) -> Iterator[None]:
    """As patch.dict(sys.modules, found), which would also forget the modules that were imported meanwhile."""
    before = {name: sys.modules.get(name) for name in found}
    sys.modules.update(found)
    try:
        yield
    finally:
        for name, module_before in before.items():
            if module_before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module_before


@contextmanager
def compiled_files() -> Iterator[None]:
    """A kernel that is compiled for one architecture, into a file: here the file holds its text."""
    if find_spec("llama3.cuda.cubin") is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:

        def cubin_file(kernel: Kernel) -> Path:
            file = Path(folder) / kernel.file
            file.write_text(kernel_source(kernel.file), encoding="utf-8")
            return file

        with patch("llama3.cuda.device.cubin_file", cubin_file):
            yield


def cublas_library(one: Installed) -> AbstractContextManager[Any]:
    """The library that checks cuBLAS's arguments, where the launch code calls cuBLAS without CuPy."""
    if find_spec("tests.cuda.emulator.cublas") is None:
        return nullcontext()
    from tests.cuda.emulator.cublas import FakeCublas

    def memory(address: int, nbytes: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)

    def queue(stream: int, product: Callable[[], None], out: int) -> None:
        assert one.stream is not None and stream == one.stream.ptr, stream
        run = product if one.card.emulator else lambda: None
        run() if one.card.capturing is None else one.card.capturing.append(run)

    return patch("llama3.cuda.device.load_library", lambda: FakeCublas(memory, queue))
