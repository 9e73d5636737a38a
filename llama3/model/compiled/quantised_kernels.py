"""Kernels for weights in 8 and 4 bits: a code becomes its float32 value in a register, in the loop that multiplies.

As in `linear_numba.py`, a block of four rows of w meets up to four rows of x at a time, and every sum is added up in
the same order. An entry is (code - zero) * scale, rounded to float32, as `QuantisedMatrix.rows` gives it. If a row has
one scale, the sum is multiplied by it instead.

8 bits: an instruction converts an integer. A float8_e4m3fn is a float16 with a shorter fraction and another bias:
shifted left by 7 bits it is 1/256 of its value.

4 bits: 64 bytes are 16 words of 8 codes, those of 8 neighbouring columns. Shifted right by 0, 4, ... 28 bits, the words
have one code after the other in their lowest bits. With AVX-512 one instruction looks these up in 16 numbers that a
register holds. If all of a vector has one scale, those numbers are the entries, and a code costs no more than a shift
and a look-up. Without AVX-512 a code is converted as an integer. Such a vector has every eighth column, and `in_order`
puts x into the same order.

What limits them, measured on one core of a Xeon with AVX-512 (Cascade Lake, 10 GB/s): one row of x, the memory for 8
bits, and nearly so for 4 bits. Four rows, the arithmetic. While a block of w is multiplied, the next one is prefetched.
A row of 4-bit codes is so short that the CPU alone begins to read it too late: without the prefetch, 4 bits are no
faster than 8.
"""

import functools
import platform
from collections.abc import Callable

import numpy as np
from llvmlite import ir

from llama3.model.compiled import linear_numba, vectors
from llama3.model.compiled.jit import Kernel, compiled
from llama3.model.compiled.linear_numba import widen
from llama3.model.compiled.vectors import (
    AVX512,
    FEATURES,
    FLOAT,
    INT,
    LANES,
    SHORT,
    Array,
    Value,
    Variable,
    instruction,
    loop,
)

SIGNED, UNSIGNED, FLOAT8, HALF_BYTES = range(4)  # kinds of codes
BLOCK = 8 * LANES  # columns whose 4-bit codes fill a vector
NOT_SHIFTED, SHIFTED, SHIFTED_BY_GROUP = range(3)  # kinds of zeros: none, one for the matrix, one for each scale
# The instructions that convert float16. Without them LLVM would call a function that is not there.
HALVES = "+f16c" in FEATURES or AVX512 or platform.machine().lower() in ("arm64", "aarch64")
ARRAY = "Array({}, 2, 'C', readonly=True)"


def in_order(x: np.ndarray) -> np.ndarray:
    """x (T, n_in) -> the same numbers in the order in which the kernel for 4 bits meets their columns, which is that of
    (T, n_in / BLOCK, 8, LANES)."""
    return x.reshape(len(x), x.shape[1] // BLOCK, LANES, 8).swapaxes(2, 3)


def runs(codes: int, table: bool) -> bool:
    """Whether this CPU has the instructions for a kind of codes, and for a table of values of its own."""
    return (HALVES or codes != FLOAT8) and (AVX512 or not table)


def _matrix(scale_type: str) -> str:
    """The types of codes, scale, zero, table and group."""
    scale = "float32" if scale_type == "float32" else "uint16"
    return ", ".join([*map(ARRAY.format, ("uint8", scale, "int16")), "float32[::1]", "int64"])


@functools.cache
def kernel(codes: int, scales: int, zeros: int, scale_type: str) -> Kernel:
    """The kernel for one kind of matrix, compiled at its first use.

    codes and zeros: one of the kinds above. scales: how many a vector of codes has; 0: a row has one. scale_type:
    "float32", or "bfloat16" or "float16", which come as uint16.
    """
    form = codes, scales, zeros, int(scale_type == "float16")
    four, three, two, one = ((height, *form) for height in (4, 3, 2, 1))
    x_type = ARRAY.format("float32")

    @compiled(
        f"void({x_type}, {_matrix(scale_type)}, float32[:, ::1], int64, int64)",
        uses=[vectors, linear_numba],
        error_model="numpy",
    )
    def multiply(x, codes, scale, zero, table, group, out, begin, end):
        """out[:, begin:end] = x @ w[begin:end].T. A block of w stays in the cache while x passes by.

        x (T, n_in) float32, for 4 bits `in_order`; codes (n_out, bytes of a row) uint8; scale and zero (n_out, groups);
        table (16,) float32: the values of 4-bit codes less a zero for the matrix. Of 8-bit codes table[0] is added to
        each code. group: columns that share a scale. out (T, n_out) float32.
        """
        fours = len(x) - len(x) % 4
        for n in range(begin, end, 4):
            for t in range(0, fours, 4):
                tile(four, out, x, codes, scale, zero, table, group, t, n)
            if len(x) - fours == 3:
                tile(three, out, x, codes, scale, zero, table, group, fours, n)
            elif len(x) - fours == 2:
                tile(two, out, x, codes, scale, zero, table, group, fours, n)
            elif len(x) - fours == 1:
                tile(one, out, x, codes, scale, zero, table, group, fours, n)

    return multiply


@functools.cache
def unpacking(codes: int, scales: int, zeros: int, scale_type: str) -> Kernel:
    """The kernel that makes float32 of a matrix of this kind, for BLAS."""
    form = codes, max(1, scales), zeros, int(scale_type == "float16")

    @compiled(f"void({_matrix(scale_type)}, float32[:, ::1], int64)", uses=[vectors, linear_numba], error_model="numpy")
    def unpack(codes, scale, zero, table, group, out, begin):
        """out = w[begin : begin + len(out)], (rows, n_in) float32; for 4 bits, the columns are `in_order`."""
        for row in range(len(out)):
            entries(form, out, codes, scale, zero, table, group, row, begin + row)

    return unpack


@instruction
def tile(
    form: tuple[int, ...],
    out: Array,
    x: Array,
    codes: Array,
    scale: Array,
    zero: Array,
    table: Array,
    group: Value,
    t: Value,
    n: Value,
) -> None:
    """out[t + i, n : n + 4] = x[t + i] @ w[n : n + 4].T for i below the height, the first number of `form`."""
    height, kind, scales, _, half = form
    step, parts = (BLOCK, 8) if kind == HALF_BYTES else (LANES, 1)
    empty = Value(out.builder, ir.VectorType(FLOAT, LANES)(None))
    sums = [[Variable(empty) for _ in range(4)] for _ in range(height)]
    with loop(scale.shape[1], max(1, scales)) as g:
        decode = [decoder(form, scale, zero, table, n + j, g) for j in range(4)]
        with loop(group * max(1, scales), step) as k:
            column = g * group + k
            bits = [load(kind, codes, n + j, column) for j in range(4)]
            for part in range(parts):
                xs = [x.load(LANES, t + i, column + part * LANES) for i in range(height)]
                for j in range(4):
                    entries = decode[j](bits[j], part)
                    for i in range(height):
                        sums[i][j].add_product(xs[i], entries)
    for i, row in enumerate(sums):
        products = vectors.pairwise([total.value for total in row])
        if not scales:
            products *= factor_of(scale.load(4, n, 0), kind, half)
        out.store(products, t + i, n)


@instruction
def entries(form, out, codes, scale, zero, table, group, to, row):
    """out[to] = w[row]"""
    kind, scales, *_ = form
    step, parts = (BLOCK, 8) if kind == HALF_BYTES else (LANES, 1)
    with loop(scale.shape[1], scales) as g:
        decode = decoder((0, *form), scale, zero, table, row, g)
        with loop(group * scales, step) as k:
            column = g * group + k
            bits = load(kind, codes, row, column)
            for part in range(parts):
                out.store(decode(bits, part), to, column + part * LANES)


def load(kind: int, codes: Array, row: Value, column: Value) -> Value:
    """A vector of codes from a column on. Those of the row four below are read from memory meanwhile."""
    byte, element = (column >> 1, INT) if kind == HALF_BYTES else (column, None)
    codes.prefetch(row + 4, byte)
    return codes.load(LANES, row, byte, element=element)


def decoder(
    form: tuple[int, ...], scale: Array, zero: Array, table: Array, row: Value, g: Value
) -> Callable[[Value, int], Value]:
    """-> a function of a vector of codes and the part's number, which makes a row's entries in the groups from g on."""
    _, kind, scales, zeros, half = form
    factor = shift = None
    if scales:
        factor = over_lanes([factor_of(scale.number(row, g + i), kind, half) for i in range(scales)])
    if zeros == SHIFTED_BY_GROUP:
        of_groups = [zero.number(row, g + i).convert("sitofp", FLOAT) for i in range(max(1, scales))]
        shift = over_lanes(of_groups)

    def moved(values: Value) -> Value:
        if shift is not None:
            values = values - shift
        return values if factor is None else values * factor

    if kind == HALF_BYTES and AVX512:
        values = table.load(16, 0)
        if scales <= 1:
            values = moved(values)
            return lambda bits, part: values.look_up(bits >> 4 * part)
        return lambda bits, part: moved(values.look_up(bits >> 4 * part))
    if zeros == SHIFTED:
        shift = (table.number(0) * -1.0).spread(LANES)
    return lambda bits, part: moved(value(kind, bits, part))


def value(kind: int, bits: Value, part: int) -> Value:
    """Codes -> their values as float32, without zero and scale. Those of FLOAT8 are 1/256 of what they should be."""
    if kind == HALF_BYTES:
        return (bits >> 4 * part & 15).convert("sitofp", FLOAT)
    if kind == FLOAT8:
        shifted = (bits.convert("sext", SHORT) << 7) & ~0x4000  # the sign, 0, 4 bits of the exponent, 3 of the fraction
        return from_half(shifted)
    return bits.convert("sext" if kind == SIGNED else "zext", INT).convert("sitofp", FLOAT)


def factor_of(scale: Value, kind: int, half: int) -> Value:
    """Scales as they are stored -> what `value` is multiplied by, float32."""
    if half:
        scale = from_half(scale)
    elif not scale.is_float:
        scale = widen(scale)
    return scale * 256.0 if kind == FLOAT8 else scale


def from_half(bits: Value) -> Value:
    """The bits of float16 numbers -> the same numbers as float32."""
    return bits.convert("bitcast", ir.HalfType()).convert("fpext", FLOAT)


def over_lanes(numbers: list[Value]) -> Value:
    """One number for each group of lanes -> a vector."""
    vector = numbers[0].spread(LANES)
    for i, one in enumerate(numbers[1:], start=1):
        lanes = range(LANES // len(numbers) * i, LANES // len(numbers) * (i + 1))
        vector = vector.shuffle([LANES if lane in lanes else lane for lane in range(LANES)], one.spread(LANES))
    return vector
