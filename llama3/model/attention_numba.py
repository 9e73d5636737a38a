"""Attention compiled by numba: the result of `attention.py`, and a row's bits depend on nothing but its own sequence.

They depend neither on the rows that are computed with it, nor on where a chunk of a prompt begins, nor on the number of
threads. For that, each query meets the keys in blocks of KEYS from position 0, and each block in the same steps: the
scores, the largest score so far, the exponentials as weights, and the sum of the values with these weights. When a
larger score is found, what has been summed up is scaled down (online softmax, Milakov and Gimelshein 2018), so the
scores of a whole row are never in memory. Keys and values behind a row's own position are not read.

numba's own loops would either add in an order that LLVM chooses or use a small part of the CPU. So the products of
scores and values are vector instructions, written for LLVM: the order of every sum is fixed, and each product is added
with one rounding. Four query heads of one position share their keys and values, so each entry that is loaded is used
four times.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_jitable

from llama3.model.jit import compiled
from llama3.model.threads import share

KEYS = 64  # positions in a block
ROWS = 32  # queries that meet a block one after the other, while it is in the core's cache
LARGE = 2**16  # scores; from about 0.4 ms of work on, it is shared among threads
AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
DOT = 16 if AVX512 else 8  # products that a step adds to a dot product: one register
WIDE, NARROW = 64 if AVX512 else 16, 8  # channels of the values that a tile sums up: as many as the registers hold
FUSE = {"contract"}  # a product and a sum may be rounded once, but no sum is reordered


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q (n, n_heads, head_dim), the last n positions; k, v (n_kv_heads, length, head_dim), positions 0 to length - 1
    -> (n, n_heads * head_dim). Row i of q is at position length - n + i. All are float32, head_dim a multiple of 8.
    """
    n, n_heads, head_dim = q.shape
    n_kv_heads, length, _ = k.shape
    assert k.shape == v.shape and head_dim % 8 == n_heads % n_kv_heads == 0 and n <= length, (q.shape, k.shape, v.shape)
    assert k.strides[1:] == v.strides[1:] == (4 * head_dim, 4), (k.strides, v.strides)
    q = np.ascontiguousarray(q)
    out = np.empty((n, n_heads, head_dim), np.float32)

    def work(slices: Iterator[slice]) -> None:
        shape = min(n, ROWS), n_heads // n_kv_heads
        queries, sums = _aligned((2, *shape, head_dim))
        weights, state = np.empty((*shape, KEYS), np.float32), np.empty((2, *shape), np.float32)
        for tasks in slices:
            attend(q, k, v, out, queries, sums, state, weights, tasks.start, tasks.stop)

    tasks = -(-n // ROWS) * n_kv_heads  # one kv head and up to ROWS queries each
    share(work, tasks, 1 if n * n_heads * length >= LARGE else tasks)
    return out.reshape(n, n_heads * head_dim)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An array of unset float32 numbers that begins at a multiple of 64 bytes: a register's load then costs half."""
    size = math.prod(shape)
    memory = np.empty(size + 16, np.float32)
    begin = -memory.__array_interface__["data"][0] % 64 // 4
    return memory[begin : begin + size].reshape(shape)


# Instructions for numba, written for LLVM. A tile is a loop in which all sums stay in registers.


def dots(heads: int, keys: int) -> Any:
    """An instruction for numba: the 16 dot products of `heads` queries with `keys` keys, 4 x 4 or 1 x 16.

    Channels are added up DOT apart, and the DOT sums then in pairs. Those left over by a multiple of DOT are not added.
    """

    @intrinsic
    def tile(typing, weights, queries, k, row, head, kv_head, first, key, last):
        """weights[row, head + h, key + j] = queries[row, head + h] @ k[kv_head, min(first + key + j, last)]"""

        def emit(context, builder, signature, arguments):
            weights, queries, k, row, head, kv_head, first, key, last = _values(context, builder, signature, arguments)
            rows = [builder.add(head, head.type(h)) for h in range(heads)]
            positions = [builder.add(builder.add(first, key), key.type(j)) for j in range(keys)]
            positions = [builder.select(builder.icmp_signed("<", p, last), p, last) for p in positions]
            totals = [cgutils.alloca_once_value(builder, _vector(DOT)(None)) for _ in range(16)]
            channels = cgutils.unpack_tuple(builder, queries.shape)[2]
            with cgutils.for_range(builder, builder.sdiv(channels, channels.type(DOT))) as loop:
                channel = builder.mul(loop.index, channels.type(DOT))
                a = [builder.load(_address(builder, queries, DOT, row, r, channel), align=4) for r in rows]
                b = [builder.load(_address(builder, k, DOT, kv_head, p, channel), align=4) for p in positions]
                for i, total in enumerate(totals):
                    _multiply_add(builder, total, a[i // keys], b[i % keys])
            sums = [builder.load(total) for total in totals]
            while len(sums) > 16 // DOT:  # add neighbouring lanes of two vectors to one vector, until a lane is a sum
                even, odd = range(0, 2 * DOT, 2), range(1, 2 * DOT, 2)
                pairs = list(zip(sums[::2], sums[1::2]))
                sums = [builder.fadd(_shuffle(builder, *ab, even), _shuffle(builder, *ab, odd)) for ab in pairs]
            both = sums[0] if len(sums) == 1 else _shuffle(builder, *sums, range(16))
            for h, r in enumerate(rows):
                part = _shuffle(builder, both, both, range(h * keys, (h + 1) * keys))
                builder.store(part, _address(builder, weights, keys, row, r, key), align=4)
            return context.get_dummy_value()

        return types.void(weights, queries, k, row, head, kv_head, first, key, last), emit

    return tile


def weigh(heads: int, lanes: int) -> Any:
    """An instruction for numba: add n values times their weights, one after another, to the sums of heads."""

    @intrinsic
    def tile(typing, sums, weights, v, row, head, kv_head, first, n, channel):
        """sums[row, head + h] += weights[row, head + h, :n] @ v[kv_head, first : first + n], `lanes` channels of it"""

        def emit(context, builder, signature, arguments):
            sums, weights, v, row, head, kv_head, first, n, channel = _values(context, builder, signature, arguments)
            rows = [builder.add(head, head.type(h)) for h in range(heads)]
            places = [_address(builder, sums, lanes, row, r, channel) for r in rows]
            totals = [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in places]
            with cgutils.for_range(builder, n) as loop:
                position = builder.add(first, loop.index)
                value = builder.load(_address(builder, v, lanes, kv_head, position, channel), align=4)
                for r, total in zip(rows, totals):
                    weight = builder.load(_address(builder, weights, 1, row, r, loop.index), align=4)
                    _multiply_add(builder, total, _shuffle(builder, weight, weight, [0] * lanes), value)
            for place, total in zip(places, totals):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(sums, weights, v, row, head, kv_head, first, n, channel), emit

    return tile


def fold(add: bool) -> Any:
    """An instruction for numba: the sum of KEYS numbers in a row, or the largest, by adding or comparing halves."""

    @intrinsic
    def row_of(typing, weights, row, head):
        def emit(context, builder, signature, arguments):
            weights, row, head = _values(context, builder, signature, arguments)
            x, lanes = builder.load(_address(builder, weights, KEYS, row, head), align=4), KEYS
            while lanes > 1:
                lanes //= 2
                a, b = _shuffle(builder, x, x, range(lanes)), _shuffle(builder, x, x, range(lanes, 2 * lanes))
                x = builder.fadd(a, b) if add else builder.select(builder.fcmp_unordered(">", a, b), a, b)
            return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

        return types.float32(weights, row, head), emit

    return row_of


def _values(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """What an instruction is given: numbers, and arrays with their `data`, `shape` and `strides`."""
    given = zip(signature.args, arguments)
    return [context.make_array(t)(context, builder, x) if isinstance(t, types.Array) else x for t, x in given]


def _vector(lanes: int) -> Any:
    return ir.VectorType(ir.FloatType(), lanes)


def _address(builder: Any, array: Any, lanes: int, *indices: Any) -> Any:
    """Where an array has the `lanes` numbers that begin at these indices."""
    address = builder.bitcast(array.data, ir.IntType(8).as_pointer())
    for index, stride in zip(indices, cgutils.unpack_tuple(builder, array.strides)):
        address = builder.gep(address, [builder.mul(index, stride)])
    return builder.bitcast(address, _vector(lanes).as_pointer())


def _multiply_add(builder: Any, total: Any, a: Any, b: Any) -> None:
    """total += a * b, rounded once, for vectors; `total` is a variable's address."""
    function = ir.FunctionType(a.type, [a.type] * 3)
    fma = cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{a.type.count}f32")
    builder.store(builder.call(fma, [a, b, builder.load(total)]), total)


def _shuffle(builder: Any, a: Any, b: Any, lanes: Any) -> Any:
    """The vector of these lanes of a and b; b's are counted on from a's."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))


dots_4x4, dots_1x16 = dots(4, 4), dots(1, 16)
sum_of, largest_of = fold(add=True), fold(add=False)
weigh_4, weigh_1, weigh_narrow = weigh(4, WIDE), weigh(1, WIDE), weigh(1, NARROW)

LOG2_E, LN_2 = np.float32(np.log2(np.e)), np.float32(0.693359375)  # ln 2 in 9 bits: times a whole number, it is exact
LN_2_REST = np.float32(np.log(2) - 0.693359375)
C2, C3, C4, C5, C6, C7 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720, 5040))  # the series of exp


@register_jitable
def exp(x):
    """e**x of a float32, to 2 units in the last place: 2**n * e**r, where |r| <= ln(2) / 2. Without a branch."""
    x = np.float32(-104) if x < np.float32(-104) else x  # e**-104 rounds to 0
    x = np.float32(89) if x > np.float32(89) else x  # e**89 is infinite
    n = np.floor(x * LOG2_E + np.float32(0.5))
    r = x - n * LN_2 - n * LN_2_REST
    y = ((((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2) * r + np.float32(1)) * r + np.float32(1)
    n = np.int32(n)
    half = n >> np.int32(1)  # 2**n may be too small for a float32 of full accuracy, its halves are not
    return y * power_of_2(half) * power_of_2(np.int32(n - half))


@register_jitable
def power_of_2(n):
    """2**n for -126 <= n <= 127, as the bits of a float32: the exponent behind 23 bits of zeros."""
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@register_jitable
def softmax_block(weights, visible, sums, state, row, head):
    """Turn one query's scores into weights and scale down what has been summed up."""
    s, total = weights[row, head], sums[row, head]
    for j in range(visible, KEYS):
        s[j] = -np.inf
    before = state[0, row, head]
    largest = max(before, largest_of(weights, row, head))
    for j in range(KEYS):
        s[j] = exp(s[j] - largest)
    scale = exp(before - largest)
    for d in range(len(total)):
        total[d] *= scale
    state[0, row, head], state[1, row, head] = largest, state[1, row, head] * scale + sum_of(weights, row, head)


@register_jitable
def score_block(weights, queries, k, row, kv_head, first, visible):
    """weights[row, :, :visible] = queries[row] @ k[kv_head, first : first + visible].T"""
    _, group, head_dim = queries.shape
    fours = group // 4 * 4
    for head in range(0, fours, 4):
        for key in range(0, visible, 4):
            dots_4x4(weights, queries, k, row, head, kv_head, first, key, first + visible - 1)
    for head in range(fours, group):
        for key in range(0, visible, 16):
            dots_1x16(weights, queries, k, row, head, kv_head, first, key, first + visible - 1)
    for d in range(head_dim // DOT * DOT, head_dim):
        for head in range(group):
            for key in range(visible):
                weights[row, head, key] += queries[row, head, d] * k[kv_head, first + key, d]


@register_jitable
def weigh_block(sums, weights, v, row, kv_head, first, visible):
    """sums[row] += weights[row, :, :visible] @ v[kv_head, first : first + visible]"""
    _, group, head_dim = sums.shape
    fours, wide = group // 4 * 4, head_dim // WIDE * WIDE
    for channel in range(0, wide, WIDE):
        for head in range(0, fours, 4):
            weigh_4(sums, weights, v, row, head, kv_head, first, visible, channel)
        for head in range(fours, group):
            weigh_1(sums, weights, v, row, head, kv_head, first, visible, channel)
    for channel in range(wide, head_dim, NARROW):
        for head in range(group):
            weigh_narrow(sums, weights, v, row, head, kv_head, first, visible, channel)


_given = "Array(float32, 3, '{}', readonly=True)"  # the argument may be read-only
_scratch = ", ".join(["float32[:, :, ::1]"] * 5)  # out, queries, sums, state, weights
_signature = f"void({_given.format('C')}, {_given.format('A')}, {_given.format('A')}, {_scratch}, int64, int64)"


@compiled(_signature, fastmath=FUSE)
def attend(q, k, v, out, queries, sums, state, weights, first_task, last_task):
    """Tasks first_task to last_task: each is the queries of one kv head at up to ROWS positions.

    state: of each query, the largest score and the sum of the weights. All arrays that come in are float32.
    """
    n, _, head_dim = q.shape
    n_kv_heads, length, _ = k.shape
    group = queries.shape[1]
    scale = np.float32(1) / np.sqrt(np.float32(head_dim))
    for task in range(first_task, last_task):
        kv_head, begin = task % n_kv_heads, task // n_kv_heads * ROWS
        rows, position = min(ROWS, n - begin), length - n + begin  # the position of the first of these queries
        for row in range(rows):
            for head in range(group):
                given, query, total = q[begin + row, kv_head * group + head], queries[row, head], sums[row, head]
                for d in range(head_dim):
                    query[d] = given[d] * scale
                    total[d] = 0
                state[0, row, head], state[1, row, head] = -np.inf, 0
        for first in range(0, position + rows, KEYS):
            for row in range(max(0, first - position), rows):
                score_block(weights, queries, k, row, kv_head, first, min(KEYS, position + row + 1 - first))
            for row in range(max(0, first - position), rows):
                for head in range(group):
                    softmax_block(weights, min(KEYS, position + row + 1 - first), sums, state, row, head)
            for row in range(max(0, first - position), rows):
                weigh_block(sums, weights, v, row, kv_head, first, min(KEYS, position + row + 1 - first))
        for row in range(rows):
            for head in range(group):
                total, result = sums[row, head], out[begin + row, kv_head * group + head]
                factor = np.float32(1) / state[1, row, head]
                for d in range(head_dim):
                    result[d] = total[d] * factor
