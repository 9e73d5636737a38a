"""Stand-ins for a GPU, for CuPy and for torch.cuda, on a machine without one. They check, and compute nothing.

A benchmark that nobody can run until a GPU is at hand would otherwise fail there, at its first typing mistake. So

- torch's tensors are on the device "meta": torch itself checks shapes and dtypes, and memory is only counted. A tensor
  of the host among tensors of the GPU is refused, and so is what a capture forbids (torch_cuda.py);
- CuPy's arrays have addresses and shapes, and a kernel's arguments are compared with its source (cupy_module.py,
  cupy_objects.py);
- both take their memory from one card, as large as the smallest that the benchmark is made for (card.py);
- nvidia-smi, and processes that would need the GPU, only answer (commands.py).

With `emulated`, CuPy's kernels run in the emulator instead, on real memory, so that the results are right.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.cuda.stand_ins import cupy_module
from tests.cuda.stand_ins.card import Card


@contextmanager
def a_gpu() -> Iterator[Card]:
    """CuPy, torch.cuda and nvidia-smi, with no kernel ever run. torch's tensors belong on the card's torch_device."""
    from tests.cuda.stand_ins import commands, torch_cuda

    card = Card()
    with ExitStack() as stack:
        stack.enter_context(cupy_module.installed(card))
        stack.enter_context(torch_cuda.installed(card))
        stack.enter_context(commands.installed())
        yield card


@contextmanager
def emulated() -> Iterator[Card]:
    """CuPy, with kernels and memory of the emulator. torch is left alone."""
    from tests.cuda.emulator.device import EmulatedDevice

    card = Card(EmulatedDevice())
    with cupy_module.installed(card):
        yield card
