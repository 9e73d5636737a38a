"""How long a step of decoding and a prompt should take, from the launches that the code makes (gpu_launches.py).

A step takes the time for reading its weights and its keys and values, and what comes on top: the gap after each kernel,
what a kernel loses to the L2 cache or for want of loads in flight, attention's latency, and the wait for the host.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import gpu_assumptions as given  # the files beside this one
from gpu_assumptions import Card, Code
from gpu_floor import LLAMA3_8B, attention_flops, cache_read, decode_bytes, prefill_flops, weights_read
from gpu_launches import Launched, decoding_launches, prompt_launches

from llama3.cuda.attention import SPLIT
from llama3.cuda.linear import FEW_OUTPUTS

C = LLAMA3_8B
RESOURCES = Path(__file__).parents[1] / "tests/cuda/resources.txt"
CHUNK = 2048  # rows of a step that reads a prompt
REGISTERS, SHARED = 64 * 1024, 227 * 1024  # of an SM
PRODUCTS = ("norm_qkv_rope", "norm_linear", "norm_swiglu", "linear_add", "linear", "linear_float")


@dataclass(frozen=True)
class Step:
    """Seconds of a step of decoding, by what they are spent on."""

    batch: int
    bytes: int  # of weights, keys and values
    l2_bytes: int  # that products take from the L2 cache
    launches: int
    reading: float  # of these bytes, at the rate of reading
    products: float  # what products lose beyond reading
    gaps: float
    attention: float  # what attention loses beyond reading
    small: float  # norms, rotations, the sampler
    host: float  # the GPU waits for the host

    @property
    def seconds(self) -> float:
        return self.reading + self.products + self.gaps + self.attention + self.small + self.host

    @property
    def share(self) -> float:
        """Of the rate of reading."""
        return self.reading / self.seconds


@cache
def launches(batch: int, max_len: int, kind: str | None = None) -> tuple[Launched, ...]:
    return tuple(decoding_launches(C, batch, max_len, kind))


@cache
def chunk_launches(rows: int) -> tuple[Launched, ...]:
    return tuple(prompt_launches(C, rows))


def decode(card: Card, code: Code, batch: int, context: int, kind: str | None = None) -> Step:
    """kind: of the matrices, as in `weights_read`. cuBLAS multiplies by bf16 only."""
    found = launches(batch, -(-(context + 256) // 256) * 256, kind)
    sampler = [launch for launch in found if launch.name.startswith("sampler")]
    attention = [launch for launch in found if launch.name.startswith("attention")]
    matrices = [launch for launch in found if is_product(launch)]
    small = len(found) - len(sampler) - len(attention) - len(matrices)
    by_cublas = kind is None and code.own_rows is not None and batch > code.own_rows(card.memory_rate)
    small += C.n_layers * by_cublas - sum(launch.name == "swiglu" for launch in found)  # cuBLAS computes no SwiGLU
    count = small + len(attention) + len(matrices) + code.sampler_launches
    logits = batch * C.vocab_size * 4
    gap = given.GAP if code.overlap else given.APART
    gaps = gap * count + (given.FULL_GAP - gap) * len(matrices) * by_cublas
    nbytes, norms = decode_bytes(C, batch, context, kind), 2 * C.dim * (2 * C.n_layers + 1)
    ideal = (weights_read(C, kind) - norms) / card.read  # of the products
    return Step(
        batch=batch,
        bytes=nbytes,
        l2_bytes=sum(launch.weights if by_cublas else l2_bytes(launch) for launch in matrices),
        launches=count,
        reading=nbytes / card.read,
        products=sum(product_seconds(card, code, launch, by_cublas) for launch in matrices) - ideal,
        gaps=gaps,
        attention=sum(attention_loss(card, code, launch, batch, context) for launch in attention),
        small=given.SMALL_KERNEL * (small + code.sampler_launches) + 2 * logits / card.l2,
        host=host_wait(code, batch),
    )


def is_product(launch: Launched) -> bool:
    return launch.name in PRODUCTS or launch.name == "cuBLAS" or "_few" in launch.name


def l2_bytes(launch: Launched) -> int:
    """By our kernels: each block reads its rows of the matrix, and all of x."""
    blocks = launch.blocks or -(-launch.arrays[0][0][0] // FEW_OUTPUTS)  # of linear_few, if cuBLAS was recorded
    return launch.weights + blocks * launch.x


def product_seconds(card: Card, code: Code, launch: Launched, by_cublas: bool) -> float:
    ideal = launch.weights / card.read
    if by_cublas:
        return ideal / given.CUBLAS_SHARE
    if launch.name in PRODUCTS:
        return ideal / given.PRODUCT_SHARE
    resident = min(launch.blocks or card.sms, blocks_per_sm(launch) * card.sms)
    in_flight = resident * 8 * 2048 * (2 if code.few_early else 1)  # 8 warps, each with chunks of 2 KB
    rate = min(card.read * given.PRODUCT_SHARE, in_flight / given.LATENCY)
    late = 0 if code.few_early else 4.5 * given.LATENCY  # the first loads come one after the other, after the wait
    return max(launch.weights / rate, l2_bytes(launch) / card.l2) + late


@cache
def blocks_per_sm(launch: Launched) -> int:
    """Of 256 threads, as many as registers and shared memory allow, by the table of the compiled kernels."""
    for row in RESOURCES.read_text().splitlines():
        file, defines, name, architecture, registers, shared, *_ = row.split()
        if (file, name, architecture) == ("linear_few.cu", launch.name, "sm_90") and same(defines, launch):
            per_warp = -(-int(registers) * 32 // 256) * 256
            return min(8, REGISTERS // (8 * per_warp), SHARED // (int(shared) + 1024))
    return 1  # for 64 rows, where cuBLAS was recorded


def same(defines: str, launch: Launched) -> bool:
    return tuple(defines.split(",")) == launch.defines


def attention_loss(card: Card, code: Code, launch: Launched, batch: int, context: int) -> float:
    """Seconds beyond reading keys and values. One row's latency is partly hidden: wo is prefetched meanwhile."""
    nbytes = batch * cache_read(C, context) / C.n_layers
    ideal = nbytes / card.read
    rate = given.ATTENTION_SHARE * card.read
    if code.attention_early:
        taken = max(given.ATTENTION_EARLY, given.ATTENTION_ENDS + nbytes / rate)
    else:
        latency = given.ATTENTION_LATE[0] + given.ATTENTION_LATE[1] * min(1, context / 2048)
        issued = card.sms * card.clock * given.ATTENTION_ISSUES
        taken = max(latency, given.ATTENTION_ENDS + nbytes / min(rate, issued))
    useful = batch * C.n_kv_heads * -(-(context + 1) // SPLIT)
    taken += max(0, launch.blocks - useful) / card.sms * given.EMPTY_BLOCK
    prefetched = C.dim * (2048 + 4096) / card.read if batch == 1 else 0  # of wo: two and four KB of each row
    return taken - ideal - given.PREFETCH_HIDES * min(taken - ideal, prefetched)


def host_wait(code: Code, batch: int) -> float:
    return given.GRAPH_GAP if code.ahead else python_seconds(code, batch) + given.COPY_BACK


def python_seconds(code: Code, batch: int) -> float:
    """Between the known numbers of rows, on a straight line."""
    points = code.python_us
    for (low, at_low), (high, at_high) in pairwise(points):
        if low <= batch <= high:
            return 1e-6 * (at_low + (at_high - at_low) * (batch - low) / (high - low))
    return 1e-6 * points[-1][1]


# ---- prompts


@dataclass(frozen=True)
class Prompt:
    """Seconds of a prompt, by what they are spent on."""

    flops: float
    products: float
    attention: float
    rest: float  # norms, rotations, SwiGLU
    host: float  # beyond these, since Python launches every kernel by hand
    launches: int

    @property
    def seconds(self) -> float:
        return self.products + self.attention + self.rest + self.host


def prefill(card: Card, code: Code, T: int) -> Prompt:
    rows = min(T, CHUNK)
    found, chunks = chunk_launches(rows), -(-T // rows)
    products = sum(matmul_seconds(card, launch, rows) for launch in found if launch.name == "cuBLAS")
    rest = sum(
        nbytes
        for launch in found
        if launch.name != "cuBLAS" and not launch.name.startswith("attention")
        for shape, nbytes in launch.arrays
        if shape[0] == rows
    )
    attention = C.n_layers * attention_flops(C, T) / code.prompt.rate(card)
    busy = chunks * (products + rest / card.read) + attention
    host = max(0.0, chunks * len(found) * given.EAGER_LAUNCH - busy)
    return Prompt(
        prefill_flops(C, T), chunks * products, attention, chunks * rest / card.read, host, chunks * len(found)
    )


def matmul_seconds(card: Card, launch: Launched, rows: int) -> float:
    """cuBLAS needs many rows for its full rate, and reads the matrix at least once."""
    known = sorted(given.MATMUL_SHARE)
    share = given.MATMUL_SHARE[max(n for n in known if n <= max(rows, known[0]))]
    n_out, width = launch.arrays[0][0]
    return max(2 * rows * n_out * width / min(card.tensor, share * card.tensor_peak), launch.weights / card.read)
