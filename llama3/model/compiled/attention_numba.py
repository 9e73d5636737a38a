"""Attention compiled by numba: the result of `attention.py`, and a row's bits depend on nothing but its own sequence.

They depend neither on the rows that are computed with it, nor on where a chunk of a prompt begins, nor on the number of
threads. For that, each query meets the keys in blocks of KEYS from position 0, and each block in the same steps: the
scores, the largest score so far, the exponentials as weights, and the sum of the values with these weights. When a
larger score is found, what has been summed up is scaled down (online softmax, Milakov and Gimelshein 2018), so the
scores of a whole row are never in memory. Keys and values behind a row's own position are not read.

The steps are vector instructions (`vectors.py`), so the order of every sum is fixed, and each product is added with one
rounding. Up to four query heads of one position share their keys and values, so that each entry that is loaded is used
up to four times. One kernel is compiled, for the shape of the model's heads.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from llama3.model.compiled import vectors
from llama3.model.compiled.aligned import aligned
from llama3.model.compiled.jit import Kernel, compiled
from llama3.model.compiled.vectors import FLOAT, INT, LANES, Array, Value, Variable, dot_products, instruction, loop
from llama3.model.threads import share

KEYS = 64  # positions in a block
ROWS = 32  # queries that meet a block one after the other, while it is in the core's cache
LARGE = 2**14  # scores; from about 0.7 ms of work on, for one query, it is shared among threads
STATE = 16  # numbers at the end of a record, of which two are used: the next one begins in a new line of the cache
HEAD_STEP = 16  # head_dim must be a multiple of it, so that a head is whole vectors
WIDTHS = (64, 32, 16) if vectors.AVX512 else (16,)  # channels of four heads that the registers can sum up


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q (n, n_heads, head_dim), the last n positions; k, v (n_kv_heads, length, head_dim), positions 0 to length - 1
    -> (n, n_heads * head_dim). Row i of q is at position length - n + i. All are float32.
    """
    n, n_heads, head_dim = q.shape
    n_kv_heads, length, _ = k.shape
    assert k.shape == v.shape and n_heads % n_kv_heads == 0 and n <= length, (q.shape, k.shape, v.shape)
    assert k.strides[1:] == v.strides[1:] == (4 * head_dim, 4), (k.strides, v.strides)
    q = np.ascontiguousarray(q)
    out = np.empty((n, n_heads, head_dim), np.float32)
    group, scale = n_heads // n_kv_heads, np.float32(1) / np.sqrt(np.float32(head_dim))
    attend = kernel(group, head_dim)

    def work(slices: Iterator[slice]) -> None:
        records = aligned((min(n, ROWS), group, 2 * head_dim + KEYS + STATE), np.float32)
        for tasks in slices:
            attend(q, k, v, out, records, scale, tasks.start, tasks.stop)

    tasks = -(-n // ROWS) * n_kv_heads  # one kv head and up to ROWS queries each
    share(work, tasks, 1 if n * n_heads * length >= LARGE else tasks)
    return out.reshape(n, n_heads * head_dim)


# While a query is computed, it has a record. It holds the query (head_dim numbers), the sum of the values so far
# (head_dim), the scores of a block, which become weights (KEYS), the largest score and the sum of the weights so far.
#
# A form is head_dim, the heads and the keys that `score` multiplies at a time, and the channels that `weigh` sums up.


@instruction
def begin(form: Any, records: Any, row: Any, q: Any, from_row: Any, from_head: Any, scale: Any) -> None:
    """Set the records of a row: its queries are those of q from a head on, times scale."""
    (head_dim, _, _, lanes), zero = form, scale.like(0)
    with loop(records.shape[1]) as head:
        for channel in range(0, head_dim, lanes):
            query = q.load(lanes, from_row, from_head + head, channel)
            records.store(query * scale.spread(lanes), row, head, channel)
            records.store(zero.spread(lanes), row, head, head_dim + channel)
        records.store(scale.like(-math.inf), row, head, head_dim * 2 + KEYS)
        records.store(zero, row, head, head_dim * 2 + KEYS + 1)


@instruction
def score(form: Any, records: Any, k: Any, row: Any, kv_head: Any, first: Any, ahead: Any) -> None:
    """The weights of a row's queries for the block of keys from `first` on, of which `ahead` or all are visible."""
    head_dim, heads, keys, _ = form
    visible = ahead.smaller(KEYS)
    last = first + visible - 1
    with loop(records.shape[1], heads) as head, loop(visible, keys) as key:
        places = [(first + key + j).smaller(last) for j in range(keys)]
        a = [lambda channel, h=head + h: records.load(LANES, row, h, channel) for h in range(heads)]
        b = [lambda channel, place=place: k.load(LANES, kv_head, place, channel) for place in places]
        for h, products in enumerate(dot_products(a, b, k.shape[2])):
            records.store(products, row, head + h, key + head_dim * 2)
    with loop(records.shape[1]) as head:
        softmax_block(form, records, row, head, visible)


def softmax_block(form: Any, records: Array, row: Value, head: Value, visible: Value) -> None:
    """Turn the scores of one query and one block into weights, and scale down what has been summed up."""
    head_dim, _, _, lanes = form
    scores, state = head_dim * 2, head_dim * 2 + KEYS
    before, total = records.load(1, row, head, state), records.load(1, row, head, state + 1)
    s = records.load(KEYS, row, head, scores)
    s = s.first(visible).choose(s, -math.inf)
    largest = before.larger(s.fold(Value.larger))
    s, scale = exp(s - largest.shuffle([0] * KEYS)), exp(before - largest)
    records.store(s, row, head, scores)
    records.store(largest, row, head, state)
    records.store(total.times_plus(scale, s.fold(Value.__add__)), row, head, state + 1)
    for channel in range(head_dim, 2 * head_dim, lanes):
        records.store(records.load(lanes, row, head, channel) * scale.shuffle([0] * lanes), row, head, channel)


@instruction
def weigh(form: Any, records: Any, v: Any, row: Any, kv_head: Any, first: Any, ahead: Any) -> None:
    """Add a block's values, times their weights, to the sums of a row's queries."""
    head_dim, heads, _, lanes = form
    with loop(v.shape[2], lanes) as channel, loop(records.shape[1], heads) as head:
        group = [head + h for h in range(heads)]
        totals = [Variable(records.load(lanes, row, h, channel + head_dim)) for h in group]
        with loop(ahead.smaller(KEYS)) as i:
            value = v.load(lanes, kv_head, first + i, channel)
            for h, total in zip(group, totals):
                total.add_product(records.number(row, h, i + head_dim * 2).spread(lanes), value)
        for h, total in zip(group, totals):
            records.store(total.value, row, h, channel + head_dim)


@instruction
def finish(form: Any, out: Any, to_row: Any, to_head: Any, records: Any, row: Any) -> None:
    """The results of a row: the sums of the values, divided by the sums of the weights."""
    head_dim, _, _, lanes = form
    with loop(records.shape[1]) as head:
        total = records.number(row, head, head_dim * 2 + KEYS + 1)
        factor = (total.like(1) / total).spread(lanes)
        for channel in range(0, head_dim, lanes):
            result = records.load(lanes, row, head, head_dim + channel) * factor
            out.store(result, to_row, to_head + head, channel)


LOG2_E, LN_2 = math.log2(math.e), 0.693359375  # ln 2 in 9 bits: times a whole number, it is exact


def exp(x: Value) -> Value:
    """e**x of float32, to 2 units in the last place: 2**n * e**r, where |r| <= ln(2) / 2. Without a branch."""
    x = x.larger(-104).smaller(89)  # e**-104 rounds to 0, and e**89 is infinite
    n = x.times_plus(LOG2_E, 0.5).floor()
    r = n.times_plus(LN_2 - math.log(2), n.times_plus(-LN_2, x))
    y = r.like(1 / 5040)
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1):  # the series of exp
        y = y.times_plus(r, term)
    n = n.convert("fptosi", INT)
    half = n >> 1  # 2**n may be too small for a float32 of full accuracy, its halves are not
    return y * power_of_2(half) * power_of_2(n - half)


def power_of_2(n: Value) -> Value:
    """2**n for -126 <= n <= 127, as the bits of a float32: the exponent before 23 bits of zeros."""
    return ((n + 127) << 23).convert("bitcast", FLOAT)


_inputs = ", ".join(f"Array(float32, 3, '{layout}', readonly=True)" for layout in "CAA")  # q, k, v
_signature = f"void({_inputs}, float32[:, :, ::1], float32[:, :, ::1], float32, int64, int64)"


@functools.cache
def kernel(group: int, head_dim: int) -> Kernel:
    """The kernel for models with `group` query heads for each kv head."""
    assert head_dim % HEAD_STEP == 0, head_dim
    heads = next(n for n in (4, 3, 2, 1) if group % n == 0)
    return _kernel((head_dim, heads, 4 if heads > 1 else 8, next(n for n in WIDTHS if head_dim % n == 0)))


@functools.cache
def _kernel(form: tuple[int, int, int, int]) -> Kernel:
    @compiled(_signature, uses=[vectors], error_model="numpy")
    def attend(q, k, v, out, records, scale, first_task, last_task):
        """Tasks first_task to last_task: each is the queries of one kv head at up to ROWS positions."""
        for task in range(first_task, last_task):
            kv_head, top = task % len(k), task // len(k) * ROWS
            rows = ROWS if len(q) - top > ROWS else len(q) - top
            position = k.shape[1] - len(q) + top  # of the first of these queries
            head = kv_head * records.shape[1]
            for row in range(rows):
                begin(form, records, row, q, top + row, head, scale)
            for first in range(0, position + rows, KEYS):
                start = first - position if first > position else 0
                for row in range(start, rows):
                    score(form, records, k, row, kv_head, first, position + row + 1 - first)
                for row in range(start, rows):
                    weigh(form, records, v, row, kv_head, first, position + row + 1 - first)
            for row in range(rows):
                finish(form, out, top + row, head, records, row)

    return attend
