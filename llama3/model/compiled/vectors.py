"""Vector instructions for numba's kernels: loops whose sums stay in registers, written in Python and emitted for LLVM.

numba compiles loops over single numbers. LLVM then makes vectors of them, if it may reorder the sums, in an order of
its own. So the inner loops of the kernels are written here as what they are to be: operations on vectors, in a fixed
order. That is also what makes the kernels compile fast, because numba infers no types in them.

A function with `@instruction` runs once, when a kernel that calls it is compiled. Its arguments are `Value` and `Array`
objects, which stand for registers and memory, and what it does with them is written down as instructions.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
AVX512 = "+avx512f" in FEATURES
LANES = 16 if AVX512 else 8  # float32 numbers in a vector that fills one register
FLOAT, INT, SHORT = ir.FloatType(), ir.IntType(32), ir.IntType(16)


def instruction(emit: Callable[..., None]) -> Any:
    """Decorate a function that emits instructions, so that kernels can call it. It writes to arrays, returns nothing.

    It gets a Value for a number and an Array for an array. A tuple of integers that the kernel has as a constant comes
    as this tuple, so that one function can emit several forms.
    """

    @functools.wraps(emit)
    def define(typing: Any, *given: Any) -> Any:
        plain = [t if isinstance(t, types.BaseTuple) else types.unliteral(t) for t in given]

        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(*(_argument(context, builder, t, x) for t, x in zip(signature.args, arguments)))
            return context.get_dummy_value()

        return types.void(*plain), lower

    parameters = list(inspect.signature(emit).parameters.values())
    first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined] # numba counts them
    return intrinsic(prefer_literal=True)(define)


def _argument(context: Any, builder: Any, t: Any, x: Any) -> Any:
    if isinstance(t, types.BaseTuple):
        return tuple(item.literal_value for item in t)
    if isinstance(t, types.Array):
        return Array(builder, context.make_array(t)(context, builder, x))
    return Value(builder, x)


class Value:
    """A number, or a vector of numbers, in a register. Numbers of Python beside it become constants of its type."""

    def __init__(self, builder: Any, register: Any) -> None:
        self.builder, self.register, self.type = builder, register, register.type
        self.lanes = getattr(self.type, "count", 1)
        self.is_float = getattr(self.type, "element", self.type) == FLOAT

    def like(self, other: Any) -> "Value":
        """`other` as a Value of the same type, if it is a number of Python."""
        if isinstance(other, Value):
            return other
        vector = isinstance(self.type, ir.VectorType)
        return Value(self.builder, self.type([other] * self.lanes if vector else other))

    def _emit(self, name: str, *others: Any) -> "Value":
        return Value(self.builder, getattr(self.builder, name)(self.register, *(self.like(x).register for x in others)))

    def __add__(self, other: Any) -> "Value":
        return self._emit("fadd" if self.is_float else "add", other)

    def __sub__(self, other: Any) -> "Value":
        return self._emit("fsub" if self.is_float else "sub", other)

    def __mul__(self, other: Any) -> "Value":
        return self._emit("fmul" if self.is_float else "mul", other)

    def __truediv__(self, other: Any) -> "Value":
        return self._emit("fdiv", other)

    def __and__(self, other: Any) -> "Value":
        return self._emit("and_", other)

    def __or__(self, other: Any) -> "Value":
        return self._emit("or_", other)

    def __lshift__(self, other: Any) -> "Value":
        return self._emit("shl", other)

    def __rshift__(self, other: Any) -> "Value":
        """The sign moves in."""
        return self._emit("ashr", other)

    def upper_half(self) -> "Value":
        """Of 32 bits, as 32 bits."""
        return self._emit("lshr", 16)

    def __lt__(self, other: Any) -> "Value":
        """A condition, false for NaN."""
        compare = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_signed
        return Value(self.builder, compare("<", self.register, self.like(other).register))

    def equals(self, other: Any) -> "Value":
        """A condition on integers."""
        return Value(self.builder, self.builder.icmp_unsigned("==", self.register, self.like(other).register))

    def is_nan(self) -> "Value":
        return Value(self.builder, self.builder.fcmp_unordered("uno", self.register, self.register))

    def choose(self, a: "Value", b: Any) -> "Value":
        """Where this condition holds a, else b."""
        return Value(self.builder, self.builder.select(self.register, a.register, a.like(b).register))

    def smaller(self, other: Any) -> "Value":
        """NaN stays."""
        other = self.like(other)
        return (other < self).choose(other, self)

    def larger(self, other: Any) -> "Value":
        """NaN stays."""
        return (self < other).choose(self.like(other), self)

    def times_plus(self, factor: Any, term: Any) -> "Value":
        """self * factor + term, rounded once."""
        return self._call("llvm.fma", factor, term)

    def floor(self) -> "Value":
        return self._call("llvm.floor")

    def _call(self, name: str, *others: Any) -> "Value":
        name += f".v{self.lanes}f32"
        form = ir.FunctionType(self.type, [self.type] * (1 + len(others)))
        function = cgutils.get_or_insert_function(self.builder.module, form, name)
        registers = [x.register for x in (self, *map(self.like, others))]
        return Value(self.builder, self.builder.call(function, registers))

    def convert(self, how: str, element: Any) -> "Value":
        """By LLVM's instruction of this name, to numbers of the type `element`."""
        vector = isinstance(self.type, ir.VectorType)
        to = ir.VectorType(element, self.lanes) if vector else element
        return Value(self.builder, getattr(self.builder, how)(self.register, to))

    def look_up(self, indices: "Value") -> "Value":
        """Of this vector of 16 float32 the lanes that the lowest 4 bits of 16 indices name. AVX-512 has it."""
        form = ir.FunctionType(self.type, [self.type, indices.type])
        name = "llvm.x86.avx512.permvar.sf.512"
        function = cgutils.get_or_insert_function(self.builder.module, form, name)
        return Value(self.builder, self.builder.call(function, [self.register, indices.register]))

    def spread(self, lanes: int) -> "Value":
        """A vector that has this number in all its lanes."""
        vector = ir.VectorType(self.type, lanes)(ir.Undefined)
        one = Value(self.builder, self.builder.insert_element(vector, self.register, INT(0)))
        return one.shuffle([0] * lanes)

    def shuffle(self, lanes: Sequence[int], other: "Value | None" = None) -> "Value":
        """The vector of these lanes of two vectors. The lanes of `other` are counted on from those of this one."""
        mask = ir.VectorType(INT, len(lanes))(list(lanes))
        return Value(self.builder, self.builder.shuffle_vector(self.register, (other or self).register, mask))

    def lane(self, i: int) -> "Value":
        return Value(self.builder, self.builder.extract_element(self.register, INT(i)))

    def fold(self, combine: Callable[["Value", "Value"], "Value"]) -> "Value":
        """Combine the lower half of the lanes with the upper half, until one lane is left."""
        half = self.lanes // 2
        if not half:
            return self
        return combine(self.shuffle(range(half)), self.shuffle(range(half, 2 * half))).fold(combine)

    def first(self, n: "Value") -> "Value":
        """The condition that a lane is one of the first n."""
        numbers = Value(self.builder, ir.VectorType(INT, self.lanes)(list(range(self.lanes))))
        return numbers < n.convert("trunc", INT).spread(self.lanes)


class Array:
    """An array in memory. Its numbers need no other alignment than their own size."""

    def __init__(self, builder: Any, array: Any) -> None:
        self.builder, self.data, self.element = builder, array.data, array.data.type.pointee
        self.shape = [Value(builder, n) for n in cgutils.unpack_tuple(builder, array.shape)]
        self._strides = cgutils.unpack_tuple(builder, array.strides)

    def _place(self, element: Any, indices: tuple[Any, ...]) -> Any:
        address = self.builder.bitcast(self.data, ir.IntType(8).as_pointer())
        for index, stride in zip(indices, self._strides):
            index = index.register if isinstance(index, Value) else stride.type(index)
            address = self.builder.gep(address, [self.builder.mul(index, stride)])
        return self.builder.bitcast(address, element.as_pointer())

    def load(self, lanes: int, *indices: Any, element: Any = None) -> Value:
        """A vector of `lanes` numbers that begin at these indices. element: the type to read the bytes as."""
        align = min(getattr(self.element, "width", 32) // 8, 4)
        place = self._place(ir.VectorType(element or self.element, lanes), indices)
        return Value(self.builder, self.builder.load(place, align=align))

    def prefetch(self, *indices: Any) -> None:
        """Have the cache line of these indices read from memory meanwhile. They may lie behind the end."""
        place = self._place(ir.IntType(8), indices)
        form = ir.FunctionType(ir.VoidType(), [place.type, INT, INT, INT])
        function = cgutils.get_or_insert_function(self.builder.module, form, "llvm.prefetch.p0")
        self.builder.call(function, [place, INT(0), INT(3), INT(1)])  # to be read, into the nearest cache, as data

    def number(self, *indices: Any) -> Value:
        return Value(self.builder, self.builder.load(self._place(self.element, indices)))

    def store(self, value: Value, *indices: Any) -> None:
        self.builder.store(value.register, self._place(value.type, indices), align=4)


class Variable:
    """A Value that changes in a loop. LLVM keeps it in a register."""

    def __init__(self, start: Value) -> None:
        self._place = cgutils.alloca_once_value(start.builder, start.register)
        self.builder = start.builder

    @property
    def value(self) -> Value:
        return Value(self.builder, self.builder.load(self._place))

    @value.setter
    def value(self, new: Value) -> None:
        self.builder.store(new.register, self._place)

    def add_product(self, a: Value, b: Value) -> None:
        """a * b is added, with one rounding."""
        self.value = a.times_plus(b, self.value)


@contextmanager
def loop(n: Value, step: int = 1) -> Iterator[Value]:
    """The instructions of the `with` block are repeated for 0, step, 2 * step, ... below n."""
    zero, step = n.type(0), n.type(step)
    with cgutils.for_range_slice(n.builder, zero, n.register, step, inc=True) as (index, _):
        yield Value(n.builder, index)


def dot_products(
    a: Sequence[Callable[[Value], Value]], b: Sequence[Callable[[Value], Value]], length: Value
) -> list[Value]:
    """For each a, the vector of its dot products with all b, of which there are 4 or 8.

    a and b: functions that load LANES numbers from an index on; the length is a multiple of LANES. Each lane is added
    up from the beginning to the end, and neighbouring lanes then in pairs.
    """
    zeros = Value(length.builder, ir.VectorType(FLOAT, LANES)(None))
    sums = [[Variable(zeros) for _ in b] for _ in a]
    with loop(length, LANES) as index:
        xs, ys = [load(index) for load in a], [load(index) for load in b]
        for x, row in zip(xs, sums):
            for y, total in zip(ys, row):
                total.add_product(x, y)
    return [pairwise([total.value for total in row]) for row in sums]


def pairwise(vectors: list[Value]) -> Value:
    """Vectors -> the vector of the sum of each."""
    n = len(vectors)
    while len(vectors) > 1 or vectors[0].lanes > n:
        even, odd = range(0, 2 * vectors[0].lanes, 2), range(1, 2 * vectors[0].lanes, 2)
        if len(vectors) == 1:
            (one,) = vectors
            vectors = [one.shuffle(even[: one.lanes // 2]) + one.shuffle(odd[: one.lanes // 2])]
        else:
            vectors = [a.shuffle(even, b) + a.shuffle(odd, b) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]
