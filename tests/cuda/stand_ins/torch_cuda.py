"""A stand-in for torch.cuda and torch.compile. The GPU's tensors are on torch's device "meta": nothing is computed.

torch checks shapes and dtypes itself. What "meta" does not notice is checked here: tensors of both devices in one
operation, what a capture forbids, and a full memory. Every call has the parameters of the real function, which
`inspect` reads from the torch that is installed.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cuda.stand_ins.card import PROCESSORS, Card, OutOfMemory, StandInError

aten = torch.ops.aten
LARGE = 1 << 20  # bytes: before that much is taken, what is no longer used is given back
COPIES = {aten.copy_.default, aten._to_copy.default}  # may go from one device to the other


class OnTheCard(TorchDispatchMode):
    """Sees every operation of torch."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}  # of the GPU, by their handles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [arg for arg in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(arg, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        target = str(kwargs.get("device") or "cpu")
        if func in COPIES and "meta" in {target, *(tensor.device.type for tensor in tensors)}:
            return self.copy(func, args, kwargs)
        if len(devices) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {sorted(devices)}")
        if func is aten._local_scalar_dense.default and tensors[0].device.type == "meta":
            self.card.not_while_capturing("waiting for a number of a tensor")
            return tensors[0].dtype == torch.bool  # transformers asks whether positions follow one another: they do
        if kwargs.pop("pin_memory", False) and target != "cpu":
            raise RuntimeError("Only dense CPU tensors can be pinned")
        out = func(*args, **kwargs)
        if "meta" in devices or target == "meta":
            self.card.torch_busy |= not func.is_view
            self.count(out)
        return out

    def copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Between the two devices, or on the GPU. What arrives on the host is zeros."""
        self.card.torch_busy = True
        if func is aten.copy_.default:
            into, source = args[0], args[1]
            torch.broadcast_shapes(into.shape, source.shape)
            if source.dim() and into.shape != torch.broadcast_shapes(into.shape, source.shape):
                raise RuntimeError(f"a copy of {tuple(source.shape)} into {tuple(into.shape)}")
            blocking = not (kwargs.get("non_blocking") or args[2:] == (True,))
            if blocking and into.device != source.device:
                self.card.not_while_capturing("a copy that waits")
            return into if into.device.type == "meta" else into.zero_()
        device, dtype = kwargs.get("device") or args[0].device, kwargs.get("dtype") or args[0].dtype
        if torch.device(device).type == "cpu":
            self.card.not_while_capturing("a copy that waits")
            return torch.zeros(args[0].shape, dtype=dtype)
        out = torch.empty_like(args[0], dtype=dtype, device="meta")
        self.count(out)
        return out

    def count(self, out: Any) -> None:
        """Take memory for storages that are new, and give back what is gone."""
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.storages:
                    nbytes = storage.nbytes()
                    if nbytes > LARGE or len(self.storages) % 64 == 0:
                        self.collect()
                    try:
                        self.card.torch.take(nbytes)
                    except OutOfMemory as error:
                        raise torch.OutOfMemoryError(f"CUDA out of memory: {error}") from error
                    self.storages[storage._cdata] = StorageWeakRef(storage), nbytes

    def collect(self) -> None:
        for handle, (storage, nbytes) in list(self.storages.items()):
            if storage.expired():
                self.card.torch.give(nbytes)
                del self.storages[handle]


class Stream:
    def wait_stream(self, stream: "Stream") -> None:
        assert isinstance(stream, Stream), type(stream)


class Event:
    recorded = False

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        if not self.recorded:
            raise StandInError("an event that was never recorded waits for nothing")


class CUDAGraph:
    captured = False

    def replay(self) -> None:
        if not self.captured:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")


class Cuda:
    """The functions of torch.cuda, by their names."""

    def __init__(self, card: Card, mode: OnTheCard):
        self.card, self.mode = card, mode
        self.current, self.compiled = Stream(), 0

    def is_available(self) -> bool:
        return True

    def get_device_name(self, device: Any = None) -> str:
        return "stand-in for an H100 80GB"

    def get_device_properties(self, device: Any = None) -> Any:
        return SimpleNamespace(multi_processor_count=PROCESSORS, uuid="00000000-0000-0000-0000-000000000000")

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return self.card.total - self.card.used, self.card.total

    def synchronize(self, device: Any = None) -> None:
        self.card.not_while_capturing("synchronize")
        self.card.torch_busy = False

    def empty_cache(self) -> None:
        self.card.not_while_capturing("empty_cache")
        self.mode.collect()
        self.card.torch.trim()

    def current_stream(self, device: Any = None) -> Stream:
        return self.current

    def stream(self, stream: Stream) -> Any:
        assert isinstance(stream, Stream), type(stream)
        return nullcontext()

    @contextmanager
    def graph(self, cuda_graph: CUDAGraph, **options: Any) -> Iterator[None]:
        assert isinstance(cuda_graph, CUDAGraph) and not options, (cuda_graph, options)
        self.card.not_while_capturing("a capture")
        self.card.capturing = []
        try:
            yield
        finally:
            self.card.capturing = None
        cuda_graph.captured = True

    # ---- not of torch.cuda

    def compile(self, model: Callable[..., Any], *, mode: str | None = None, fullgraph: bool = False) -> Any:
        if mode is not None:
            assert mode in torch._inductor.list_mode_options(), mode
        self.compiled += mode == "reduce-overhead"
        return model

    def get_manager(self, device_index: int, create_if_none_exists: bool = True) -> Any:
        return SimpleNamespace(roots={0: [object()] * self.compiled}) if self.compiled else None

    def attention(self, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> torch.Tensor:
        """Where only cuDNN may run, it wants as many key heads as query heads; torch's documentation says so."""
        inspect_call(TORCH_ATTENTION, query, key, value, *args, **options)
        allowed = torch.backends.cuda
        if not (allowed.flash_sdp_enabled() or allowed.math_sdp_enabled()) and key.shape[1] != query.shape[1]:
            raise RuntimeError("No available kernel. Aborting execution.")
        if key.shape[1] != query.shape[1] and not options.get("enable_gqa"):
            raise RuntimeError(f"{query.shape[1]} query heads and {key.shape[1]} key heads")
        return torch.empty_like(query)


TORCH_ATTENTION = "scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)"


def inspect_call(signature: str, *args: Any, **options: Any) -> None:
    """For a function of C++, which `inspect` cannot read: no more arguments than it has, and no other names."""
    names = signature[signature.index("(") + 1 : -1].split(", ")
    if len(args) > len(names) or not options.keys() <= set(names[len(args) :]):
        raise TypeError(f"{signature} got {len(args)} arguments and {sorted(options)}")


def same_parameters(real: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """`ours`, which refuses what the real function would refuse."""
    signature = inspect.signature(real)

    def call(*args: Any, **options: Any) -> Any:
        signature.bind(*args, **options)
        return ours(*args, **options)

    return call


@contextmanager
def installed(card: Card) -> Iterator[None]:
    import torch._dynamo
    import torch._inductor.cudagraph_trees as trees

    mode = OnTheCard(card)
    cuda = Cuda(card, mode)
    names = ("is_available", "get_device_name", "get_device_properties", "mem_get_info", "synchronize", "empty_cache")
    with ExitStack() as stack:
        for name in (*names, "current_stream", "stream"):
            ours = same_parameters(getattr(torch.cuda, name), getattr(cuda, name))
            stack.enter_context(patch.object(torch.cuda, name, ours))
        for name, ours in (("Stream", Stream), ("Event", Event), ("CUDAGraph", CUDAGraph), ("graph", cuda.graph)):
            stack.enter_context(patch.object(torch.cuda, name, ours))
        stack.enter_context(patch.object(torch, "compile", same_parameters(torch.compile, cuda.compile)))
        stack.enter_context(patch.object(trees, "get_manager", same_parameters(trees.get_manager, cuda.get_manager)))
        stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", cuda.attention))
        stack.enter_context(mode)
        yield
