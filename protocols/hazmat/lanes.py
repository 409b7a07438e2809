"""Lanes: 64-bit values side by side in vector registers, and how kernels compute with them.

A kernel is a Python function that numba compiles. Where it needs lanes it calls a function under `@traced`,
which runs once, at compile time, on `Vec`s that stand for the values to come, and so writes LLVM's code for
them: an operation on a `Vec` is one instruction on every lane, and a Python loop is code repeated.

- Whole numbers are unsigned, modulo 2^64, eight to a vector: `+ - & | ^`, shifts by a constant, and `mlo`,
  `mhi`: an accumulator plus the low or the high 52 bits of the product of two 52-bit numbers. AVX512-IFMA has
  an instruction for each; elsewhere LLVM gets a product of 128 bits, which is right and slow.
- Doubles come four to a vector: `+ -`, and `fma`: a b + c, rounded once.

No operation branches on what the lanes hold. Importing this module compiles nothing, but it imports numba,
which takes the better part of a second: whoever may not need a kernel should import it late.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from llvmlite import ir
from numba import config, types
from numba.core import cgutils, codegen
from numba.extending import intrinsic, models, register_model

Holds = Literal["int", "float"]
COUNT = {"int": 8, "float": 4}  # lanes that `load` reads: a 512-bit register, and that of CPUs without IFMA

_IFMA = "llvm.x86.avx512.vpmadd52{}.uq.512"  # (accumulator, factor, factor), eight lanes


class Lanes(types.Type):
    """numba's type of `count` lanes of whole numbers or of doubles."""

    def __init__(self, holds: Holds, count: int) -> None:
        self.holds = holds
        self.count = count
        super().__init__(name=f"Lanes({holds}, {count})")

    @property
    def vector(self) -> ir.VectorType:
        """The same as a type of LLVM."""
        return ir.VectorType(ir.DoubleType() if self.holds == "float" else ir.IntType(64), self.count)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.vector)


def host_has(*features: str) -> bool:
    """Whether code that numba compiles here may use these features, by LLVM's names ("avx2", "fma").

    numba's settings count, not the CPU alone: `NUMBA_CPU_FEATURES`, `NUMBA_ENABLE_AVX`.
    """
    chosen = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return {f"+{feature}" for feature in features} <= set(chosen.split(","))


def has_ifma() -> bool:
    """Whether `mlo` and `mhi` are one instruction each here."""
    return host_has("avx512f", "avx512ifma")


class Vec:
    """Lanes in code that is being written. The other side of an operator is a Vec like it, or a number."""

    def __init__(self, build: ir.IRBuilder, value: ir.Value) -> None:
        self.build = build
        self.value = value

    @property
    def lanes(self) -> Lanes:
        vector = self.value.type
        return Lanes("float" if isinstance(vector.element, ir.DoubleType) else "int", vector.count)

    def like(self, number: float | ir.Value) -> Vec:
        """`number` in every lane: a Python number, or a scalar of the code that is being written."""
        vector = self.value.type
        if not isinstance(number, ir.Value):
            number = (
                number % 2**64 if isinstance(number, int) and self.lanes.holds == "int" else float(number)
            )
            return Vec(self.build, ir.Constant(vector, [number] * vector.count))
        empty, zero = ir.Constant(vector, ir.Undefined), ir.IntType(32)(0)
        first = self.build.insert_element(empty, number, zero)
        spread = ir.Constant(ir.VectorType(zero.type, vector.count), [0] * vector.count)
        return Vec(self.build, self.build.shuffle_vector(first, empty, spread))

    def _with(self, other: Vec | float, whole: str, real: str | None = None) -> Vec:
        value = other.value if isinstance(other, Vec) else self.like(other).value
        name = real if self.lanes.holds == "float" else whole
        if name is None or value.type != self.value.type:
            raise TypeError(f"no {whole} of {self.value.type} and {value.type}")
        return Vec(self.build, getattr(self.build, name)(self.value, value))

    def __add__(self, other: Vec | float) -> Vec:
        return self._with(other, "add", "fadd")

    def __sub__(self, other: Vec | float) -> Vec:
        return self._with(other, "sub", "fsub")

    def __and__(self, other: Vec | int) -> Vec:
        return self._with(other, "and_")

    def __or__(self, other: Vec | int) -> Vec:
        return self._with(other, "or_")

    def __xor__(self, other: Vec | int) -> Vec:
        return self._with(other, "xor")

    def __lshift__(self, count: int) -> Vec:
        return self._with(count, "shl")

    def __rshift__(self, count: int) -> Vec:
        return self._with(count, "lshr")

    def bits(self) -> Vec:
        """The doubles' 64 bits as whole numbers."""
        return Vec(self.build, self.build.bitcast(self.value, Lanes("int", self.lanes.count).vector))

    def double(self) -> Vec:
        """The doubles that have these 64 bits."""
        return Vec(self.build, self.build.bitcast(self.value, Lanes("float", self.lanes.count).vector))


def fma(a: Vec, b: Vec, c: Vec) -> Vec:
    """a b + c on doubles, rounded once, to the nearest. Without the CPU's instruction a slow call."""
    return _call(f"llvm.fma.v{a.value.type.count}f64", a, b, c)


def mlo(total: Vec, a: Vec, b: Vec, *, native: bool | None = None) -> Vec:
    """total + (a b mod 2^52), of the low 52 bits of a and b."""
    return _madd52("l", total, a, b, native)


def mhi(total: Vec, a: Vec, b: Vec, *, native: bool | None = None) -> Vec:
    """total + floor(a b / 2^52), of the low 52 bits of a and b."""
    return _madd52("h", total, a, b, native)


def _madd52(part: Literal["l", "h"], total: Vec, a: Vec, b: Vec, native: bool | None) -> Vec:
    """`native`: whether the code is for a CPU with AVX512-IFMA; None: whether this one is."""
    if (has_ifma() if native is None else native) and total.lanes.count == 8:
        return _call(_IFMA.format(part), total, a, b)
    build, vector = total.build, total.value.type
    wide = ir.VectorType(ir.IntType(128), vector.count)
    product = build.mul(*(build.zext((factor & (2**52 - 1)).value, wide) for factor in (a, b)))
    if part == "h":
        product = build.lshr(product, ir.Constant(wide, [52] * vector.count))
    return total + (Vec(build, build.trunc(product, vector)) & (2**52 - 1))


def _call(name: str, *operands: Vec) -> Vec:
    build, vector = operands[0].build, operands[0].value.type
    kind = ir.FunctionType(vector, [vector] * len(operands))
    function = cgutils.get_or_insert_function(build.module, kind, name)
    return Vec(build, build.call(function, [operand.value for operand in operands]))


def traced(function: Callable[..., Any]) -> Any:
    """`function`, for use in kernels: of Vecs, tuples of Vecs and scalars to a Vec or (nested) tuples of
    them.

    Lanes and tuples of lanes come as Vecs; any other argument as LLVM's value, which `Vec.like` takes.
    """
    names = list(inspect.signature(function).parameters)

    def typed(context: Any, *kinds: Any) -> Any:
        def lower(context: Any, build: Any, signature: Any, values: Any) -> Any:
            given = [_open(build, kind, value) for kind, value in zip(kinds, values, strict=True)]
            return _close(context, build, function(*given))

        return _result(function, kinds)(*kinds), lower

    # numba binds a call's arguments by these names.
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ["context", *names]]
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__name__ = typed.__qualname__ = function.__name__
    typed.__doc__ = function.__doc__
    return intrinsic(typed)


def _result(function: Callable[..., Any], kinds: tuple[Any, ...]) -> Any:
    """numba's type of what `function` gives, found by running it on the values of a throw-away function."""
    arguments: list[ir.Type] = []
    for kind in kinds:
        inner = kind.types if isinstance(kind, types.BaseTuple) else [kind]
        arguments += [k.vector if isinstance(k, Lanes) else ir.IntType(64) for k in inner]
    scratch = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), arguments), "scratch")
    build, values = ir.IRBuilder(scratch.append_basic_block()), iter(scratch.args)
    given: list[Any] = []
    for kind in kinds:
        if isinstance(kind, types.BaseTuple):
            given.append(tuple(Vec(build, next(values)) for _ in kind.types))
        else:
            given.append(Vec(build, next(values)) if isinstance(kind, Lanes) else next(values))
    return _type(function(*given))


def _type(result: Any) -> Any:
    return result.lanes if isinstance(result, Vec) else types.Tuple([_type(part) for part in result])


def _open(build: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.BaseTuple):
        return tuple(Vec(build, part) for part in cgutils.unpack_tuple(build, value))
    return Vec(build, value) if isinstance(kind, Lanes) else value


def _close(context: Any, build: Any, result: Any) -> Any:
    if isinstance(result, Vec):
        return result.value
    parts = [_close(context, build, part) for part in result]
    return context.make_tuple(build, _type(result), parts)


def _lanes_of(array: Any) -> Lanes | None:
    """What one `load` from this type of array gives."""
    if not isinstance(array, types.Array) or array.layout != "C":
        return None
    if array.dtype == types.uint64:
        return Lanes("int", COUNT["int"])
    return Lanes("float", COUNT["float"]) if array.dtype == types.float64 else None


def _place(context: Any, build: Any, kind: Any, array: Any, index: Any, lanes: Lanes) -> Any:
    start = build.bitcast(context.make_array(kind)(context, build, array).data, lanes.vector.as_pointer())
    return build.gep(start, [index])


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """Vector number `index` of a contiguous array: eight of uint64 or four of float64."""
    lanes = _lanes_of(array)
    if lanes is None:
        return None

    def lower(context: Any, build: Any, signature: Any, values: Any) -> Any:
        array, index = values
        read = build.load(_place(context, build, signature.args[0], array, index, lanes))
        read.align = 8
        return read

    return lanes(array, types.intp), lower


@intrinsic
def store(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write what `load` reads."""
    lanes = _lanes_of(array)
    if lanes is None or value != lanes:
        return None

    def lower(context: Any, build: Any, signature: Any, values: Any) -> Any:
        array, index, value = values
        write = build.store(value, _place(context, build, signature.args[0], array, index, lanes))
        write.align = 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), lower


def turned(square: list[Vec]) -> list[Vec]:
    """As many vectors as lanes: lane j of vector i becomes lane i of vector j."""
    rows, lanes = list(square), range(len(square))
    step = 1
    while step < len(rows):
        # Of two vectors `step` apart, the upper half of each pair of blocks changes places with the lower.
        for i in (i for i in lanes if not i & step):
            a, b = rows[i], rows[i + step]
            rows[i] = _mixed(a, b, [j if not j & step else len(rows) + j - step for j in lanes])
            rows[i + step] = _mixed(a, b, [j + step if not j & step else len(rows) + j for j in lanes])
        step *= 2
    return rows


def _mixed(a: Vec, b: Vec, places: list[int]) -> Vec:
    """Lanes of a, and from len(a) on of b."""
    chosen = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    return Vec(a.build, a.build.shuffle_vector(a.value, b.value, chosen))


@intrinsic
def turn(
    context: Any, source: Any, start: Any, stride: Any, into: Any, into_start: Any, into_stride: Any
) -> Any:
    """A square of lanes x lanes values of one contiguous array, turned about its diagonal, into another.

    Its rows begin at the values start, start + stride, ... of `source`, and those of the result likewise.
    """
    lanes = _lanes_of(source)
    if lanes is None or _lanes_of(into) != lanes:
        return None

    def lower(context: Any, build: Any, signature: Any, values: Any) -> Any:
        def places(at: int) -> list[Any]:
            array, first, step = values[at : at + 3]
            data = context.make_array(signature.args[at])(context, build, array).data
            rows = [build.add(first, build.mul(step, step.type(i))) for i in range(lanes.count)]
            return [build.bitcast(build.gep(data, [row]), lanes.vector.as_pointer()) for row in rows]

        square = [build.load(place) for place in places(0)]
        for read in square:
            read.align = 8
        for place, vec in zip(places(3), turned([Vec(build, read) for read in square]), strict=True):
            build.store(vec.value, place).align = 8
        return context.get_dummy_value()

    size = types.intp
    return types.void(source, size, size, into, size, size), lower
