"""A kernel for weights in 8 and 4 bits: codes less their zeros are multiplied on AMX tiles, and the sums are scaled.

`amx_kernels.py` explains the tiles. A code less its zero is an integer from -256 to 256, or a float8 number: bfloat16
holds both exactly. So `unpack` writes codes less their zeros as bfloat16 tiles into memory that stays in the cache.
These meet the parts of x as bfloat16 weights do, and the sum of a group of columns is multiplied by the group's scale:

    y = sum over groups of  scale * (sum over the group's columns of (code - zero) * x)

No entry is rounded. As in `amx_kernels.py`, an entry of y adds its terms in one order, whatever the number of rows of
x.
"""

import functools

from llvmlite import ir

from llama3.model.compiled import amx_kernels, linear_numba, quantised_kernels, vectors
from llama3.model.compiled.amx_kernels import (
    CONFIG,
    UPPER_HALF,
    address,
    ldtilecfg,
    tdpbf16ps,
    tileloadd,
    tilerelease,
    tilestored,
    tilezero,
)
from llama3.model.compiled.jit import Kernel, compiled
from llama3.model.compiled.quantised_kernels import (
    ARRAY,
    HALF_BYTES,
    NOT_SHIFTED,
    SHIFTED_BY_GROUP,
    factor_of,
    value,
)
from llama3.model.compiled.vectors import FLOAT, INT, SHORT, Array, Value, instruction, loop

DEPTH = 64  # column tiles that are unpacked at a time: those of 32 rows of W are 128 KB
BYTE = ir.IntType(8)
USES = [vectors, amx_kernels, linear_numba, quantised_kernels]


@functools.cache
def kernel(codes: int, zeros: int, scale_type: str) -> Kernel:
    """The kernel for one kind of matrix, compiled at its first use. The kinds are those of `quantised_kernels.py`."""
    form, by_group = (codes, zeros, int(scale_type == "float16")), zeros == SHIFTED_BY_GROUP
    inputs = ", ".join(map(ARRAY.format, ("uint8", "float32" if scale_type == "float32" else "uint16", "int16")))
    packed, buffers = "uint32[:, :, :, :, ::1]", "float32[:, :, ::1], uint32[:, :, :, ::1], float32[:, ::1]"

    @compiled(f"void({inputs}, {packed}, {buffers}, int64, int64, int64)", uses=USES, error_model="numpy")
    def multiply(codes, scale, zero, x, y, tiles, sums, group, begin, end):
        """y += w[begin:end] times x, 32 rows of w by 32 rows of x at a time, or by 16 if x has no more.

        codes (n_out, bytes of a row) uint8; scale and zero (n_out, groups); x as packed; y (blocks of x, rows, 16)
        float32. tiles (rows / 16, depth, 16, 16) uint32 and sums (64, 16) float32 are overwritten. The shape of tiles
        says how much of w is unpacked at a time: `depth` column tiles of so many rows. group: column tiles that share
        a scale; it divides depth, or a row has one scale. begin and end in 32s. Tiles 0 to 3 are sums, 4 and 5 are from
        w, 6 and 7 are from x.
        """
        ldtilecfg(address(CONFIG))
        steps, parts, height, depth = x.shape[1], x.shape[2], 16 * len(tiles), tiles.shape[1]
        span = group if group < depth else depth
        width = span if by_group else depth  # column tiles with one zero
        for top in range(begin, end, height):
            bottom = top + height if top + height < end else end
            for left in range(0, steps, depth):
                right = left + depth if left + depth < steps else steps
                for n in range(top, bottom):
                    for first in range(left, right, width):
                        last = first + width if first + width < right else right
                        unpack(form, tiles, codes, zero, n, n - top, first, first - left, last - first, first // group)
                for block in range(0, len(x), 2):
                    for n in range(top, bottom, 32):
                        for first in range(left, right, span):
                            a = address(tiles) + ((n - top) // 16 * depth + first - left) * 1024
                            b = address(x) + (block * steps + first) * parts * 1024
                            tilezero(0)
                            tilezero(1)
                            tilezero(2)
                            tilezero(3)
                            for _ in range(first, first + span if first + span < right else right):
                                tileloadd(4, a, 64)
                                tileloadd(5, a + depth * 1024, 64)
                                for _ in range(parts):
                                    tileloadd(6, b, 64)
                                    tdpbf16ps(0, 4, 6)
                                    tdpbf16ps(1, 5, 6)
                                    if len(x) > 1:
                                        tileloadd(7, b + steps * parts * 1024, 64)
                                        tdpbf16ps(2, 4, 7)
                                        tdpbf16ps(3, 5, 7)
                                    b += 1024
                                a += 1024
                            tilestored(0, address(sums), 64)
                            tilestored(1, address(sums) + 1024, 64)
                            add_scaled(form, y, sums, scale, n, n - begin, block, 0, first // group)
                            if len(x) > 1:
                                tilestored(2, address(sums) + 2048, 64)
                                tilestored(3, address(sums) + 3072, 64)
                                add_scaled(form, y, sums, scale, n, n - begin, block + 1, 32, first // group)
        tilerelease()

    return multiply


@instruction
def unpack(
    form: tuple[int, ...],
    tiles: Array,
    codes: Array,
    zero: Array,
    row: Value,
    to: Value,
    first: Value,
    place: Value,
    n: Value,
    g: Value,
) -> None:
    """Write n column tiles of a row of codes, less their zero of group g, to row `to` of the tiles from `place` on.

    A word of a tile has the bfloat16 of an even column in its lower half, and that of the next one in its upper half.
    """
    kind, zeros, _ = form
    shift = None
    if zeros != NOT_SHIFTED:
        of_group = zero.number(row, g) if zeros == SHIFTED_BY_GROUP else zero.number(0, 0)
        shift = of_group.convert("sitofp", FLOAT).spread(16)
    with loop(n) as k:
        numbers = pairs(kind, codes, row, first + k)
        even, odd = ((x if shift is None else x - shift).convert("bitcast", INT) for x in numbers)
        tiles.store(odd & UPPER_HALF | even.upper_half(), to >> 4, place + k, to & 15, 0)


def pairs(kind: int, codes: Array, row: Value, k: Value) -> tuple[Value, Value]:
    """The values of a column tile's 16 even columns, and of its 16 odd ones. A row four below is read meanwhile."""
    if kind == HALF_BYTES:
        byte = k << 4
        bits = codes.load(16, row, byte).convert("zext", INT)
        even, odd = (value(kind, bits, part) for part in (0, 1))
    else:
        byte = k << 5
        bits = codes.load(16, row, byte, element=SHORT)
        even, odd = (value(kind, half.convert("trunc", BYTE), 0) for half in (bits, bits >> 8))
    codes.prefetch(row + 4, byte)
    return even, odd


@instruction
def add_scaled(
    form: tuple[int, ...],
    y: Array,
    sums: Array,
    scale: Array,
    n: Value,
    to: Value,
    block: Value,
    first: Value,
    g: Value,
) -> None:
    """Add the 32 rows of sums from `first` on, each times its row's scale of group g, to a block of y from `to` on."""
    kind, _, half = form
    with loop(n.like(32)) as row:
        factor = factor_of(scale.number(n + row, g), kind, half).spread(16)
        total = sums.load(16, first + row, 0).times_plus(factor, y.load(16, block, to + row, 0))
        y.store(total, block, to + row, 0)
