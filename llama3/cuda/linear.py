"""Products with the weight matrices, for any number of rows, and the operations that are fused with them.

One row goes through kernels/linear.cu, up to 32 rows through kernels/linear_few.cu (up to 16 on a GPU whose memory is
as fast as an H200's), more rows through cuBLAS. A CUDA graph can hold all of them. Quantised matrices go through
linear_few.cu up to 64 rows, 32 at a time, because cuBLAS multiplies by bfloat16 only. Why 32 and 16: microseconds for a
matrix in bfloat16, computed (not measured), on an H100 that reads 3.0 TB/s and an H200 that reads 4.3.

                   linear_few, H100     cuBLAS,    linear_few, H200     cuBLAS,
                   16    32    64 rows    H100     16    32    64 rows    H200
  wqkv   50 MB     17    17    25           22     13    17    25           16
  wo     34 MB     11    11    17           15      8    11    17           12
  w13   235 MB     78    78   117           93     59    78   117           67
  w2    117 MB     39    39    59           46     29    39    59           33
  head 1051 MB    350   350   525          392    263   350   525          274
  step  15.0 GB   5.0   5.0   7.5 ms       6.0    3.8   5.0   7.5 ms       4.4

linear_few.cu reads w once from memory, and x again for every 32 outputs, from the L2 cache: rows / 32 times the bytes
of w. The two together pass through L2, at about 6 TB/s. So its time is that of reading w until L2 limits it, from 32
rows on, and grows with the rows from there. cuBLAS's tiles are larger, so that x hardly counts. But it reads at about
90 % of the memory's rate, and each of its kernels waits for its predecessor before it loads a first weight: 3
microseconds. SwiGLU is a launch of its own then, another 3, counted with w13. So from 17 rows on, an H200 gains from
cuBLAS, and an H100 would lose.
"""

from collections.abc import Iterator

import numpy as np

from llama3.cuda.arrays import NormInput
from llama3.cuda.device import DEFAULT_MAX_SHARED, Array, Device, bfloat16
from llama3.cuda.feed_forward import swiglu
from llama3.cuda.launch import Kernel
from llama3.cuda.quantised import PER_PIECE, SCRATCH_ROWS, Matrix, QuantisedArray, dequantised
from llama3.cuda.rms_norm import rms_norm

MAX_FEW = 32  # rows that our own kernels take
MAX_FEW_FAST_MEMORY = 16  # rows that they get if the memory is faster than this:
FAST_MEMORY = 4e12  # bytes a second by its clock: 3.35e12 on an H100, 4.8e12 on an H200
MAX_GRAPH_ROWS = 64  # rows of a step that runs as a graph; our own kernels take as many with a quantised matrix
THREADS = 256
OUTPUTS = THREADS // 32  # of a block of linear.cu: each warp computes one
PASS = 128  # pieces of 16 bytes that a warp of linear.cu multiplies in one pass
FEW_OUTPUTS = 32  # sums of a block of linear_few.cu; swiglu_few makes 16 outputs of them


def bucket(rows: int) -> int:
    """The next power of two: linear_few.cu is compiled, and graphs are captured, for this number of rows."""
    return 1 << (rows - 1).bit_length()


def max_few(memory_rate: float) -> int:
    """The most rows that our own kernels multiply by bfloat16 on a GPU of this `Device.memory_rate`."""
    return MAX_FEW_FAST_MEMORY if memory_rate > FAST_MEMORY else MAX_FEW


def by_cublas(device: Device, w: Matrix, rows: int) -> bool:
    """A quantised matrix must become bfloat16 before cuBLAS can multiply by it. That pays off for prompts only."""
    return rows > (MAX_GRAPH_ROWS if isinstance(w, QuantisedArray) else max_few(device.memory_rate))


def linear(device: Device, x: Array, w: Matrix, out: Array) -> None:
    """x (T, in), w (out, in) bfloat16 or quantised -> out (T, out) bfloat16 or float32 = x @ w.T.

    `in` is a multiple of 64.
    """
    if by_cublas(device, w, len(x)):
        _gemm(device, x, w, out)
    else:
        _launch(device, "linear", w, x, out)


def linear_add(device: Device, x: Array, w: Matrix, out: Array) -> None:
    """out (T, out) float32 += x @ w.T: adds the output of a block to the residual stream."""
    assert out.dtype == np.float32, out.dtype
    if by_cublas(device, w, len(x)):
        _gemm(device, x, w, out, accumulate=True)
    else:
        _launch(device, "linear", w, x, out, suffix="_add")


def norm_linear(device: Device, source: NormInput, w: Matrix, h: Array, out: Array) -> None:
    """out (T, out) float32 = rms_norm(source) @ w.T; source.x (T, in); h (T, in) bfloat16 is scratch memory."""
    assert out.dtype == np.float32, out.dtype
    if len(source.x) == 1:
        _launch_norm(device, "norm_linear", w, source, out)
    else:
        norm_then_linear(device, source, w, h, out)


def norm_then_linear(device: Device, source: NormInput, w: Matrix, h: Array, out: Array) -> None:
    """As `norm_linear`, in two launches. Afterwards h holds the norm, which the caller may use. out may be bfloat16."""
    rms_norm(device, source, h)
    linear(device, h, w, out)


def norm_swiglu(device: Device, source: NormInput, w13: Matrix, h: Array, gate_up: Array, out: Array) -> None:
    """out (T, hidden) bfloat16 = silu(h @ w1.T) * (h @ w3.T), where h = rms_norm(source); w13 (2 * hidden, in).

    w13 holds the rows of w1, then those of w3. h (T, in) and gate_up (T, 2 * hidden) bfloat16 are scratch memory;
    gate_up is only used with cuBLAS.
    """
    if len(source.x) == 1:
        _launch_norm(device, "norm_swiglu", w13, source, out, matrices=2)
        return
    rms_norm(device, source, h)
    if by_cublas(device, w13, len(h)):
        _gemm(device, h, w13, gate_up)
        swiglu(device, gate_up, out)
    else:
        _launch(device, "swiglu", w13, h, out, matrices=2)


def _gemm(device: Device, x: Array, w: Matrix, out: Array, accumulate: bool = False) -> None:
    if not isinstance(w, QuantisedArray):
        device.gemm(x, w, out, accumulate)
        return
    for first in range(0, len(w), SCRATCH_ROWS):
        last = min(first + SCRATCH_ROWS, len(w))
        device.gemm(x, dequantised(device, w, first, last), out[:, first:last], accumulate)


def _launch(device: Device, name: str, w: Matrix, x: Array, out: Array, suffix: str = "", matrices: int = 1) -> None:
    """suffix: what the kernel does with a sum; by default it stores the sum in the dtype of out."""
    (rows, width), n_out = x.shape, out.shape[1]
    assert w.shape == (matrices * n_out, width) and out.shape[0] == rows, (x.shape, w.shape, out.shape)
    assert width % 64 == 0 and x.dtype == bfloat16, (x.shape, x.dtype)
    weights, defines, shared = kernel_weights(w)
    suffix = suffix or ("_float" if out.dtype == np.float32 else "")
    sizes = np.int32(n_out), np.int32(width)
    if rows == 1 and matrices == 1:
        kernel = Kernel("linear.cu", name + suffix, defines, opted_in(shared))
        args = [weights, x, out, *sizes]
        device.launch(kernel, (-(-n_out // OUTPUTS),), (THREADS,), args, shared=shared, dependent=True)
        return
    grid = (-(-n_out * matrices // FEW_OUTPUTS),)
    for part in parts_of(rows):
        n = part.stop - part.start
        kernel = Kernel("linear_few.cu", f"{name}_few{suffix}", (f"ROWS={max(8, bucket(n))}", *defines))
        device.launch(kernel, grid, (THREADS,), [weights, x[part], out[part], *sizes, np.int32(n)], dependent=True)


def parts_of(rows: int) -> Iterator[slice]:
    """All rows, MAX_FEW at a time."""
    return (slice(first, min(first + MAX_FEW, rows)) for first in range(0, rows, MAX_FEW))


def kernel_weights(w: Matrix) -> tuple[Array, tuple[str, ...], int]:
    """What a kernel of linear.cu or qkv.cu needs of a matrix: the array, the compiler's definitions, and the bytes of
    shared memory for x, which a kernel for codes reads as far as a warp's pass over a row goes.
    """
    if isinstance(w, QuantisedArray):
        columns = PASS * PER_PIECE[w.kind]
        return w.rows, w.defines, 2 * columns * -(-w.shape[1] // columns)
    assert w.dtype == bfloat16, w.dtype
    return w, (), 0


def opted_in(shared: int) -> int:
    """`Kernel.max_shared` for a kernel of so much shared memory."""
    return shared if shared > DEFAULT_MAX_SHARED else 0


def _launch_norm(device: Device, name: str, w: Matrix, source: NormInput, out: Array, matrices: int = 1) -> None:
    x, norm = source.x, source.weight
    (rows, width), n_out = x.shape, out.shape[1]
    assert rows == 1 and w.shape == (matrices * n_out, width) and norm.shape == (width,), (x.shape, w.shape, norm.shape)
    assert width % 64 == 0 and x.dtype == np.float32, (x.shape, x.dtype)
    weights, defines, shared = kernel_weights(w)
    kernel, grid = Kernel("linear.cu", name, defines, opted_in(shared)), (-(-n_out // OUTPUTS),)
    args = [weights, x, norm, out, np.int32(n_out), np.int32(width), np.float32(source.eps)]
    device.launch(kernel, grid, (THREADS,), args, shared=shared or 2 * width, dependent=True)
