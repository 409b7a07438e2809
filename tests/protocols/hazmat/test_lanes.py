"""Lanes: what the operations mean, in code for this CPU and in code for CPUs with AVX512-IFMA."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable
from types import ModuleType
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from protocols.hazmat import curve_kernels, field_float, field_whole, lanes
from protocols.hazmat.compiled import kernel
from protocols.hazmat.lanes import COUNT, Lanes, Vec, load, mhi, mlo, store, traced, turn

P = 2**255 - 19
# LLVM 14 knows no Zen 4, and stops the process where it is named.
IFMA_CPUS = ["icelake-server", *(["znver4"] if llvm.llvm_version_info[0] > 15 else [])]
folds = pytest.mark.skipif(
    llvm.llvm_version_info[0] <= 20, reason="this LLVM does not compute these instructions at compile time"
)
EIGHT = Lanes("int", 8).vector
LOW52 = 2**52 - 1
words = st.one_of(
    st.sampled_from([0, 1, 2**51, LOW52, LOW52 - 1, 2**52, 2**64 - 1]), st.integers(0, 2**64 - 1)
)


def low(total: int, a: int, b: int) -> int:
    return (total + (a & LOW52) * (b & LOW52) % 2**52) % 2**64


def high(total: int, a: int, b: int) -> int:
    return (total + ((a & LOW52) * (b & LOW52) >> 52)) % 2**64


def assembly(module: ir.Module, cpu: str) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module.triple = "x86_64-unknown-linux-gnu"
    target = llvm.Target.from_triple(module.triple).create_target_machine(cpu=cpu, opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    text: str = target.emit_assembly(parsed)
    return text


def folded(cpu: str, cases: list[Callable[[ir.IRBuilder], Vec]]) -> list[int]:
    """What LLVM computes for the first lane of each case, at compile time, by its own model of that CPU."""
    module = ir.Module()
    for number, case in enumerate(cases):
        function = ir.Function(module, ir.FunctionType(ir.IntType(64), []), f"case{number}")
        build = ir.IRBuilder(function.append_basic_block())
        build.ret(build.extract_element(case(build).value, ir.IntType(32)(0)))
    text = assembly(module, cpu)
    assert "vpmadd" not in text
    return [_returned(text, f"case{number}") for number in range(len(cases))]


def _returned(text: str, function: str) -> int:
    """The constant that this function's assembly returns: in the code itself, or in memory beside it."""
    body = re.search(rf"^{function}:$(.*?)^\tretq$", text, flags=re.M | re.S)
    assert body
    if "xorl\t%eax, %eax" in body[1]:
        return 0
    if pool := re.search(r"\$(\.LCPI\w+), %rax\n\tmovq\t\(%rax\), %rax", body[1]):
        held = re.search(rf"^{re.escape(pool[1])}:\n\t\.quad\t(-?\d+)", text, flags=re.M)
    else:
        held = re.search(r"\tmov(?:absq|q|l)\t\$(-?\d+), %[re]ax", body[1])
    assert held, body[1]
    return int(held[1]) % 2**64


def constant(build: ir.IRBuilder, value: int) -> Vec:
    return Vec(build, ir.Constant(EIGHT, [value] * 8))


@pytest.mark.parametrize("cpu", IFMA_CPUS)
@pytest.mark.parametrize(("operation", "mnemonic"), [(mlo, "vpmadd52luq"), (mhi, "vpmadd52huq")])
def test_a_product_is_one_instruction_where_there_is_ifma(operation: Any, mnemonic: str, cpu: str) -> None:
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [EIGHT.as_pointer()] * 4)
    build = ir.IRBuilder(ir.Function(module, kind, "f").append_basic_block())
    total, a, b, out = build.function.args
    build.store(operation(*(Vec(build, build.load(x)) for x in (total, a, b)), native=True).value, out)
    build.ret_void()
    text = assembly(module, cpu)
    assert text.count("vpmadd52") == 1 and mnemonic in text
    # The accumulator, %rdi's, is the instruction's destination; the factors are %rsi's and %rdx's.
    assert re.search(r"vmovdqa64\t\(%rdi\), %zmm0", text)
    assert re.search(mnemonic + r"\t\(%rdx\), %zmm1, %zmm0", text) and re.search(r"\(%rsi\), %zmm1", text)


@folds
@pytest.mark.parametrize("cpu", IFMA_CPUS)
def test_that_instruction_means_what_the_plain_code_means(cpu: str) -> None:
    edges = [0, 1, 2**51, LOW52, LOW52 - 1, 2**52, 2**64 - 1]
    cases = [(5, a, b) for a in edges for b in edges]
    cases += [(secrets.randbits(64), secrets.randbits(64), secrets.randbits(52)) for _ in range(100)]

    def code(operation: Any, case: tuple[int, ...]) -> Callable[[ir.IRBuilder], Vec]:
        return lambda build: operation(*(constant(build, value) for value in case), native=True)

    assert folded(cpu, [code(mlo, case) for case in cases]) == [low(*case) for case in cases]
    assert folded(cpu, [code(mhi, case) for case in cases]) == [high(*case) for case in cases]


@folds
@pytest.mark.parametrize("cpu", IFMA_CPUS)
def test_field_arithmetic_in_ifma_code(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "has_ifma", lambda: True)
    top = 2**51 + 2**15 - 1
    pairs = [([top] * 5, [top] * 5), ([0] * 5, [top] * 5), ([2**51 - 20] + [2**51 - 1] * 4, [1, 0, 0, 0, 0])]
    pairs += [([secrets.randbits(51) for _ in range(5)], [secrets.randbits(51) for _ in range(5)])]
    f = field_whole
    operations: list[tuple[Any, Any]] = [
        (lambda a, b: f.tight(f.product(a, b)), lambda x, y: x * y),
        (lambda a, b: f.tight(f.square(b)), lambda x, y: y * y),
        (lambda a, b: f.tight(f.total(f.product(a, b), f.square(b))), lambda x, y: x * y + y * y),
        (lambda a, b: f.scaled(a, 121665, b), lambda x, y: 121665 * x + y),
    ]
    for a, b in pairs:
        for emitted, meant in operations:

            def code(limb: int, emitted: Any = emitted, a: Any = a, b: Any = b) -> Any:
                return lambda build: emitted(*([constant(build, x) for x in e] for e in (a, b)))[limb]

            limbs = folded(cpu, [code(limb) for limb in range(5)])
            assert all(limb < 2**51 + 2**15 for limb in limbs)
            assert (number(limbs) - meant(number(a), number(b))) % P == 0


def number(limbs: Any) -> int:
    return sum(int(limb) << 51 * i for i, limb in enumerate(limbs))


@traced
def both_products(total: Any, a: Any, b: Any) -> Any:
    return mlo(total, a, b), mhi(total, a, b)


@kernel
def run_products(total: Any, a: Any, b: Any, out: Any) -> None:
    pair = both_products(load(total, 0), load(a, 0), load(b, 0))
    store(out, 0, pair[0])
    store(out, 1, pair[1])


@given(*[st.lists(words, min_size=8, max_size=8)] * 3)
def test_products_of_52_bits_here(total: list[int], a: list[int], b: list[int]) -> None:
    out = np.zeros((2, 8), np.uint64)
    run_products(np.array(total, np.uint64), np.array(a, np.uint64), np.array(b, np.uint64), out)
    assert out.tolist() == [list(map(low, total, a, b)), list(map(high, total, a, b))]


@kernel
def run_turn(source: Any, start: int, stride: int, out: Any) -> None:
    turn(source, start, stride, out, 1, out.shape[1])


@pytest.mark.parametrize(("dtype", "count"), [(np.uint64, COUNT["int"]), (np.float64, COUNT["float"])])
def test_a_square_is_turned_about_its_diagonal(dtype: Any, count: int) -> None:
    source = np.arange(20 * count, dtype=dtype).reshape(count, 20)
    out = np.zeros((count, count + 2), dtype)
    run_turn(source, 3, 20, out)
    assert np.array_equal(out[:, 1:-1], source[:, 3 : 3 + count].T)
    assert not out[:, 0].any() and not out[:, -1].any()


def field(a: Any) -> ModuleType:
    return field_float if a[0].lanes.holds == "float" else field_whole


@traced
def at_the_limit(a: Any, b: Any, c: Any) -> Any:
    """The largest that the ladder forms of three elements: (a - b) c + c^2 and (a - b) c - c^2."""
    f = field(a)
    v, w = f.product(f.apart(a, b), c), f.square(c)
    return f.tight(f.total(v, w)), f.tight(f.difference(v, w)), f.scaled(f.apart(a, b), 2**20 - 1, c)


@kernel
def run_limit(a: Any, b: Any, c: Any, total: Any, difference: Any, scaled: Any) -> None:
    results = at_the_limit(curve_kernels.take(a), curve_kernels.take(b), curve_kernels.take(c))
    curve_kernels.put(total, results[0])
    curve_kernels.put(difference, results[1])
    curve_kernels.put(scaled, results[2])


def limbs_up_to(low: int, high: int) -> st.SearchStrategy[list[list[int]]]:
    limb = st.one_of(st.sampled_from([low, low + 1, 0, high - 1, high]), st.integers(low, high))
    return st.lists(st.lists(limb, min_size=5, max_size=5), min_size=3, max_size=3)


LIMITS: dict[str, tuple[int, int]] = {
    "float": (-(2**50) - 2**14, 2**50 + 2**14),
    "int": (0, 2**51 + 2**15 - 1),
}


@pytest.mark.parametrize("holds", ["float", "int"])
def test_elements_of_any_size_that_is_promised(holds: Any) -> None:
    least, most = LIMITS[holds]

    def check(elements: list[list[int]]) -> None:
        kind = np.float64 if holds == "float" else np.uint64
        given_ = [np.repeat(np.array(e, kind)[:, None], COUNT[holds], axis=1) for e in elements]
        out = [np.zeros_like(given_[0]) for _ in range(3)]
        run_limit(*given_, *out)
        a, b, c = map(number, elements)
        for result, meant in zip(
            out, [(a - b) * c + c * c, (a - b) * c - c * c, (2**20 - 1) * (a - b) + c], strict=True
        ):
            assert (result == result[:, :1]).all()
            assert least <= result.min() and result.max() <= most
            assert (number(result[:, 0].tolist()) - meant) % P == 0

    for ends in itertools.product((least, most), repeat=3):
        check([[end] * 5 for end in ends])
    given(limbs_up_to(least, most))(check)()


def test_operations_refuse_what_they_do_not_mean() -> None:
    build = ir.IRBuilder(
        ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), []), "f").append_basic_block()
    )
    whole, real = constant(build, 1), constant(build, 1).double()
    wrongs: list[Callable[[], Vec]] = [lambda: whole + real, lambda: real & real, lambda: real << 1]
    for wrong in wrongs:
        with pytest.raises(TypeError, match="^no "):
            wrong()
