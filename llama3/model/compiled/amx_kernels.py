"""Kernels for Intel's AMX tiles, compiled by numba: x is packed into tiles, and `few` and `many` multiply it by W.

AMX (Sapphire Rapids and later) has eight registers of 16 rows of 64 bytes for each thread, called tiles. TDPBF16PS
takes a tile of 16 rows of W, 32 bfloat16 each, and a tile of 32 columns of 16 rows of x. It adds their 16 x 16 products
to a tile of float32. Rows of W are such a tile as they stand. In a tile of x, row i holds for each row of x the pair of
columns 2i and 2i + 1, so x must be rearranged: that is `pack`. A product of two bfloat16 is exact in float32. The even
and the odd columns of a tile are added up separately, one column after the other, and their two sums then go to the
result. Numbers below 2**-126, given or computed, count as 0.

To multiply float32 numbers, `pack` splits each into three bfloat16 of 8 significant bits whose sum it is, and each tile
of W meets all three. Every entry of y adds its terms in one order, column tile after column tile and in each the three
parts, in `few` as in `many`. So the bits of a row of y depend neither on the number of rows of x nor on the other rows.
A tile whose rows cross cache lines costs 3.5 times as much, so all but W begins at a multiple of 64 bytes.

A CPU without AMX cannot even compile `few` and `many`: LLVM ends the process. Ask `linear_amx.missing` first.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from llama3.model.compiled import vectors
from llama3.model.compiled.jit import compiled
from llama3.model.compiled.vectors import FLOAT, INT, Array, Value, Variable, instruction, loop

DEPTH = 64  # column tiles that `many` multiplies at a time: their part of 128 rows of W stays in the core's cache
CONFIG = np.zeros(64, np.uint8)  # what LDTILECFG reads: palette 1, eight tiles of 16 rows of 64 bytes
CONFIG[0], CONFIG[48:56], CONFIG[16:32:2] = 1, 16, 64
ARRAYS = "Array(uint16, 2, 'C', readonly=True), uint32[:, :, :, :, ::1], float32[:, ::1]"  # w, packed x, and y
UPPER_HALF, EXPONENT, QUIET = 0xFFFF0000, 0x7F800000, 0x00400000  # of the bits of a float32


def compilable() -> bool:
    """Whether numba compiles for a CPU with AMX. NUMBA_CPU_FEATURES may name another CPU's features than this one's."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return "+amx-bf16" in features


def _tile_instruction(name: str, n_tiles: int, n_addresses: int) -> Any:
    """How numba calls an instruction: with literal numbers of tiles, and then with an address and a stride in bytes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = [ir.Constant(ir.IntType(8), tile.literal_value) for tile in signature.args[:n_tiles]]
        if n_addresses:
            where, *stride = arguments[n_tiles:]
            values += [builder.inttoptr(where, ir.IntType(8).as_pointer()), *stride]
        function = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.x86." + name), values)
        return context.get_dummy_value()

    def signature(*tiles: Any) -> Any:
        return types.void(*tiles, *[types.int64] * n_addresses), emit

    forms = {  # numba counts the parameters of a function, so that *arguments will not do
        (0, 0): lambda typing: signature(),
        (0, 1): lambda typing, address: signature(),
        (1, 0): lambda typing, tile: signature(tile),
        (1, 2): lambda typing, tile, address, stride: signature(tile),
        (3, 0): lambda typing, to, w, x: signature(to, w, x),
    }
    return intrinsic(prefer_literal=True)(forms[n_tiles, n_addresses])


ldtilecfg = _tile_instruction("ldtilecfg", 0, 1)
tilerelease = _tile_instruction("tilerelease", 0, 0)
tilezero = _tile_instruction("tilezero", 1, 0)
tileloadd = _tile_instruction("tileloadd64", 1, 2)
tilestored = _tile_instruction("tilestored64", 1, 2)
tdpbf16ps = _tile_instruction("tdpbf16ps", 3, 0)


@intrinsic
def address(typing: Any, array: Any) -> Any:
    """Where an array begins, as int64. With numba's own type for it, which is unsigned, sums would become float64."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(context.make_array(array)(context, builder, arguments[0]).data, ir.IntType(64))

    return types.int64(array), emit


@instruction
def pack_tile(x: Array, packed: Array, columns: Array, block: Value, k: Value) -> None:
    """Fill the column tile k of a block. columns (32, 16) float32: for the tile's columns of x, one after the other."""
    rows = (x.shape[0] - block * 16).smaller(16)
    with loop(rows) as row:
        values = x.load(32, block * 16 + row, k * 32)
        for column in range(32):
            columns.store(values.lane(column), column, row)
    parts = packed.shape[2]
    with loop(block.like(16)) as pair:
        rests = [columns.load(16, pair * 2 + i, 0) for i in range(2)]
        low, high = (Variable(rest.first(rows).choose(rest, 0)) for rest in rests)
        with loop(parts) as part:
            last = parts < part + 2
            packed.store(split(high, last) | split(low, last).upper_half(), block, k, part, pair, 0)


def split(rest: Variable, last: Value) -> Value:
    """Take the next bfloat16 from what remains of float32 numbers: as the upper half of 32 bits, the lower one is 0.

    All parts but the last are cut off, not rounded: the largest floats would round to infinity. An infinity or a NaN
    remains one, and its other parts are 0.
    """
    number = rest.value
    bits = number.convert("bitcast", INT)
    to_nearest = (bits.upper_half() & 1) + 0x7FFF  # ties to even
    part = (bits + last.choose(to_nearest, 0)) & UPPER_HALF
    special = (bits & EXPONENT).equals(EXPONENT)
    part = special.choose(number.is_nan().choose(bits | QUIET, bits) & UPPER_HALF, part)
    rest.value = special.choose(number.like(0), number - part.convert("bitcast", FLOAT))
    return part


@compiled(
    "void(Array(float32, 2, 'C', readonly=True), uint32[:, :, :, :, ::1], float32[:, ::1], int64, int64)",
    uses=[vectors],
)
def pack(x: Any, packed: Any, columns: Any, begin: int, end: int) -> None:
    """Fill the column tiles from begin to end of packed, which may have more rows than x: those become 0.

    x (T, n_in) float32; packed (>= T / 16, n_in / 32, parts, 16 pairs of columns, 16 rows) uint32; columns (32, 16)
    float32 is overwritten.
    """
    for block in range(packed.shape[0]):
        for k in range(begin, end):
            pack_tile(x, packed, columns, block, k)


@compiled(f"void({ARRAYS}, int64, int64)", error_model="numpy")
def few(w: Any, x: Any, y: Any, begin: int, end: int) -> None:
    """y = W's rows from begin to end times x, for up to 16 rows of x. The time goes into reading W from memory.

    w (n_out, n_in) bfloat16 as uint16; x as packed, of one block; y (>= end - begin, 16) float32; begin and end in 32s.
    Tiles 0 and 1 are sums, 4 and 5 are from W, 6 is from x.
    """
    ldtilecfg(address(CONFIG))
    stride = w.strides[0]
    for n in range(begin, end, 32):
        tilezero(0)
        tilezero(1)
        a, b, c = address(w) + n * stride, address(x), address(y) + (n - begin) * 64
        for _ in range(x.shape[1]):
            tileloadd(4, a, stride)
            tileloadd(5, a + 16 * stride, stride)
            for _ in range(x.shape[2]):
                tileloadd(6, b, 64)
                tdpbf16ps(0, 4, 6)
                tdpbf16ps(1, 5, 6)
                b += 1024
            a += 64
        tilestored(0, c, 64)
        tilestored(1, c + 1024, 64)
    tilerelease()


@compiled(f"void({ARRAYS}, uint32[:, ::1], int64, int64)", error_model="numpy")
def many(w: Any, x: Any, y: Any, copy: Any, begin: int, end: int) -> None:
    """The same for any number of rows of x, 32 rows of W by 32 rows of x at a time.

    x: an even number of blocks; y (>= end - begin, 16 for each block). With copy (rows, n_in / 2) uint32, so many rows
    of W are copied there first, tile after tile, and stay in the cache. If copy is empty, W is read where it is.
    Tiles 0 to 3 are sums, 4 and 5 are from W, 6 and 7 are from x.
    """
    ldtilecfg(address(CONFIG))
    steps, parts = x.shape[1], x.shape[2]
    stride, line = w.strides[0], y.strides[0]
    height = len(copy) if len(copy) else 32
    depth = DEPTH if len(copy) else steps
    for top in range(begin, end, height):
        bottom = top + height if top + height < end else end
        tiles, below, right, pitch = address(w) + top * stride, 16 * stride, 64, stride
        if len(copy):
            to = address(copy)  # tiles from W's rows lie there one after the other, row of tiles by row of tiles
            for n in range(top, bottom, 16):
                for step in range(steps):
                    tileloadd(4, address(w) + n * stride + 64 * step, stride)
                    tilestored(4, to, 64)
                    to += 1024
            tiles, below, right, pitch = address(copy), steps * 1024, 1024, 64
        for first in range(0, steps, depth):
            last = first + depth if first + depth < steps else steps
            for block in range(0, len(x), 2):
                for n in range(top, bottom, 32):
                    a = tiles + (n - top) // 16 * below + first * right
                    b = address(x) + (block * steps + first) * parts * 1024
                    c = address(y) + (n - begin) * line + block * 64
                    if first == 0:
                        tilezero(0)
                        tilezero(1)
                        tilezero(2)
                        tilezero(3)
                    else:
                        tileloadd(0, c, line)
                        tileloadd(1, c + 64, line)
                        tileloadd(2, c + 16 * line, line)
                        tileloadd(3, c + 16 * line + 64, line)
                    for _ in range(first, last):
                        tileloadd(4, a, pitch)
                        tileloadd(5, a + below, pitch)
                        for _ in range(parts):
                            tileloadd(6, b, 64)
                            tileloadd(7, b + steps * parts * 1024, 64)
                            tdpbf16ps(0, 4, 6)
                            tdpbf16ps(1, 4, 7)
                            tdpbf16ps(2, 5, 6)
                            tdpbf16ps(3, 5, 7)
                            b += 1024
                        a += right
                    tilestored(0, c, line)
                    tilestored(1, c + 64, line)
                    tilestored(2, c + 16 * line, line)
                    tilestored(3, c + 16 * line + 64, line)
    tilerelease()
