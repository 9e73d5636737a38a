"""What the predictions assume about two GPUs and about the code, each with its source. None of it is measured here."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.cuda.linear import max_few

MICRO = 1e-6


@dataclass(frozen=True)
class Card:
    name: str
    read: float  # bytes a second of reading
    memory_rate: float  # the same by its datasheet
    l2: float = 6.0e12  # bytes a second between the L2 cache and the SMs
    sms: int = 132
    clock: float = 1.755e9  # Hz under load
    tensor: float = 720e12  # FLOP a second of large products, held
    tensor_peak: float = 989e12


H100 = Card("H100", 3.0e12, 3.35e12)
H200 = Card("H200", 4.3e12, 4.8e12)

GAP = 0.9 * MICRO  # between two kernels of a graph that overlap
APART = 2.3 * MICRO  # between two kernels of ours, if they do not overlap
FULL_GAP = 3 * MICRO  # after a product by cuBLAS, which does not overlap
GRAPH_GAP = 3 * MICRO  # between two graphs that are both in the queue
SMALL_KERNEL = 1.0 * MICRO  # of a norm, a rotation, an embedding: what it takes beyond its gap
PRODUCT_SHARE = 0.98  # of the read rate, for a product of one row
LATENCY = 0.67 * MICRO  # of a load from memory under load
CUBLAS_SHARE = 0.9  # of the read rate, for products of up to 64 rows by cuBLAS
EMPTY_BLOCK = 0.06 * MICRO  # that a block takes which ends at once
ATTENTION_SHARE = 0.9  # of the read rate, for keys and values
ATTENTION_ENDS = 2 * MICRO  # of attention, beyond reading: the first loads, and the combination of the splits
ATTENTION_EARLY = 4 * MICRO  # at least, with keys and values prefetched
ATTENTION_LATE = (8 * MICRO, 4 * MICRO)  # at least, without; and what comes on top from 2,048 positions on
ATTENTION_ISSUES = 15  # bytes a clock and SM, before: 561 issue slots for 16 KB, half of them used
PREFETCH_HIDES = 0.7  # of attention's latency, behind the prefetch of the next matrix
REACHED = 0.83  # of the lowest ceiling, by attention of a prompt
COPY_BACK = 30 * MICRO  # a graph's launch, the copy of its tokens, and the wait, when none of it is hidden
EAGER_LAUNCH = 12 * MICRO  # of a launch of a prompt's step, in Python and CuPy
MATMUL_SHARE = {128: 0.36, 256: 0.65, 512: 0.78, 2048: 0.815}  # of tensor_peak, by rows


@dataclass(frozen=True)
class PromptKernel:
    """The work of an SM's warps on one turn of the kernel's loop.

    benchmarks/gpu_attention_counts.py counts it in the machine code for sm_90. Only TILES_64 is an estimate.
    """

    name: str
    rows: int  # of a block
    keys: int  # of a turn
    blocks: int  # on an SM
    instructions: int  # of a warp, besides products
    shared_cycles: int  # of shared memory, for all blocks
    tensor_share: float  # of the tensor cores' peak, that these products can reach
    warps: int = 4  # of a block

    def ceilings(self, card: Card) -> dict[str, float]:
        """FLOP a second that each limit allows, and two that share a scheduler: they may not overlap."""
        flops = self.blocks * 4 * self.rows * self.keys * 128
        issue = self.instructions * self.warps * self.blocks / 4
        tensor = flops / (4096 * self.tensor_share)
        limits = {
            "shared memory": self.shared_cycles,
            "issue slots": issue,
            "tensor cores": tensor,
            "issue slots, then tensor cores": issue + tensor,
        }
        return {name: flops / cycles * card.sms * card.clock for name, cycles in limits.items()}

    def rate(self, card: Card) -> float:
        return REACHED * min(self.ceilings(card).values())


TILES_64 = PromptKernel("`mma.sync`, 64 rows a block", 64, 64, 2, 972, 2816, 0.62)
TILES_128 = PromptKernel("`mma.sync`, 128 rows a block", 128, 64, 2, 745, 3072, 0.62)
WGMMA = PromptKernel("`wgmma`, 128 rows a block", 128, 128, 1, 620, 1792, 1.0, warps=8)


@dataclass(frozen=True)
class Code:
    """A state of the code: `BEFORE`, or with all the changes."""

    few_early: bool = True  # linear_few asks for its first weights before the wait, all at once
    own_rows: Callable[[float], int] | None = max_few  # up to which products are ours, by `memory_rate`; None: all
    ahead: bool = True  # the next step is launched before the tokens of this one are read
    sampler_launches: int = 2
    attention_early: bool = True  # keys and values are prefetched, loops end at the row's position, V comes early
    prompt: PromptKernel = WGMMA
    overlap: bool = True  # a kernel loads its first weights while its predecessor ends
    python_us: tuple[tuple[int, float], ...] = ((1, 15), (64, 100))  # a step, by rows


BEFORE = Code(False, None, False, 13, False, TILES_64, True, ((1, 34), (8, 96), (32, 191), (64, 344)))
AFTER = Code()

SOURCES = [  # (what, H100, H200, source)
    ("reading", "3.0 TB/s", "4.3 TB/s", "H200: a copy that was measured on one. H100: the same share of its datasheet"),
    ("reading by products of one row", "98 %", "98 %", "assumed: ends of grids, and the norm in front"),
    ("L2 cache to SMs", "6 TB/s", "6 TB/s", "assumed"),
    ("latency of memory under load", "0.67 µs", "0.67 µs", "assumed: 800 to 1,000 cycles, and the queue"),
    ("gap, kernels that overlap", "0.9 µs", "0.9 µs", "assumed; `dependent_graph_us` of the report decides"),
    ("gap, kernels that do not", "2.3 µs", "2.3 µs", "published: 1.3 µs in a graph on an H100; first loads: 1 µs"),
    ("gap, products by cuBLAS", "3 µs", "3 µs", "published: 1.3 µs in a graph on an H100; 1.7 µs for first loads"),
    ("gap between graphs", "3 µs", "3 µs", "assumed"),
    ("norm, rotation, embedding", "1 µs", "1 µs", "assumed: one round trip through the L2 cache"),
    ("cuBLAS, up to 64 rows", "90 % of reading", "90 % of reading", "assumed; the products of the report decide"),
    ("a block that ends at once", "0.06 µs", "0.06 µs", "assumed: the rate at which blocks start"),
    ("attention reads keys and values", "90 % of reading", "90 %", "assumed"),
    ("attention, at least, before", "8 to 12 µs", "8 to 12 µs", "15,000 to 21,000 cycles, counted in its machine code"),
    ("attention, at least, after", "4 µs", "4 µs", "assumed: half of that, since loops end at the row's position"),
    ("attention's issue slots, before", "15 bytes a clock and SM", "the same", "561 slots for 16 KB, half of it"),
    ("attention's latency behind prefetch", "70 %", "70 %", "assumed; others measured 4 to 7 % of a step, or nothing"),
    ("Python a step, before", "34 to 344 µs", "34 to 344 µs", "measured on a CPU without a GPU: 1, 8, 32, 64 rows"),
    ("Python a step, after", "15 to 100 µs", "15 to 100 µs", "the bars for it"),
    ("launch, copy and wait, not hidden", "30 µs", "30 µs", "assumed"),
    ("launch of a kernel by hand", "12 µs", "12 µs", "assumed: Python and CuPy; `launch_call_us` decides"),
    ("large products", "720 TFLOP/s", "720 TFLOP/s", "an H200 reaches 790 for a short time; less by rows: cuBLAS on an "
     "H100 has 36, 65, 78 and 81.5 % of 989 at 128, 256, 512 and 2,048 rows (published)"),
    ("tensor cores by mma.sync", "62 % of their peak", "the same", "published microbenchmarks of Hopper"),
    ("prompt attention", "83 % of the lowest ceiling", "the same", "FlashAttention 2, with such tiles: 333 of 399"),
    ("work of 64 rows a block", "972 instructions, 2,816 cycles", "the same", "estimated, for the kernel as it was; "
     "a script counts those of 128 rows"),
]  # fmt: skip
