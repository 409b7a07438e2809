"""Batches of products and powers equal those of Python's integers, in both kinds of lanes."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.hazmat.montgomery import MOST_LIMBS, Holds, Modulus
from protocols.hazmat.paillier.words import to_ints, to_words
from tests.protocols.hazmat.keys import P512, P1024, Q512, Q1024

LANES: tuple[Holds, ...] = ("int", "float")
each_kind = pytest.mark.parametrize("lanes", LANES)
MODULI = [3, 2**64 - 1, 2**64 + 1, 2**521 - 1, P512**2, (P512 * Q512) ** 2, (P1024 * Q1024) ** 2]


@cache
def modulus(n: int, lanes: Holds) -> Modulus:
    return Modulus(n, lanes)


def words(m: Modulus, numbers: list[int]) -> Any:
    return to_words([mpz(x) for x in numbers], m.width)


def ints(m: Modulus, cells: Any) -> list[int]:
    return [int(x) for x in to_ints(m.dump(cells))]


def edges(n: int) -> list[int]:
    near = [0, 1, 2, n // 2, n // 2 + 1, n - 2, n - 1]
    runs = [2**k + d for k in range(49, n.bit_length(), 51) for d in (-1, 0, 1)]
    return [x % n for x in near + runs][:60]


@each_kind
@pytest.mark.parametrize("n", MODULI)
def test_edges_survive_and_multiply_right(n: int, lanes: Holds) -> None:
    m, x = modulus(n, lanes), edges(n)
    cells = m.load(words(m, x))
    assert ints(m, cells) == x
    for turn in range(0, len(x), 5):
        y = x[turn:] + x[:turn]
        assert ints(m, m.multiply(cells, m.load(words(m, y)))) == [
            a * b % n for a, b in zip(x, y, strict=True)
        ]
    assert ints(m, m.multiply(cells, m.load(words(m, [n - 1])))) == [-a % n for a in x]


@each_kind
@given(data=st.data(), n=st.integers(1, 2**600).map(lambda k: 2 * k + 1))
@settings(max_examples=150)
def test_random_products_modulo_random_numbers(lanes: Holds, data: st.DataObject, n: int) -> None:
    m, numbers = Modulus(n, lanes), st.lists(st.integers(0, n - 1), min_size=9, max_size=9)
    x, y = data.draw(numbers), data.draw(numbers)
    product = m.multiply(m.load(words(m, x)), m.load(words(m, y)))
    for _ in range(3):  # on products that were not reduced in between
        product = m.multiply(product, product)
    assert ints(m, product) == [pow(a * b, 8, n) for a, b in zip(x, y, strict=True)]


@each_kind
@given(exponents=st.lists(st.integers(0, 2**80), min_size=1, max_size=10), seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_powers(lanes: Holds, exponents: list[int], seed: int) -> None:
    n = 2**521 - 1
    m, draw = modulus(n, lanes), np.random.default_rng(seed)
    x = [int.from_bytes(draw.bytes(64), "big") % n for _ in exponents]
    cells = m.load(words(m, x))
    assert ints(m, m.power(cells, exponents)) == [pow(a, e, n) for a, e in zip(x, exponents, strict=True)]
    assert ints(m, m.power(cells, exponents[:1])) == [pow(a, exponents[0], n) for a in x]


@each_kind
@pytest.mark.parametrize(("count", "buckets"), [(0, 2), (1, 1), (200, 1), (500, 3), (100, 40)])
def test_bucket_products(lanes: Holds, count: int, buckets: int) -> None:
    n = 2**521 - 1
    m, draw = modulus(n, lanes), np.random.default_rng(count)
    x = [int.from_bytes(draw.bytes(64), "big") % n for _ in range(count)]
    index = np.minimum(draw.integers(-1, 4 * buckets, count), buckets - 1)  # one bucket has most of them
    cells = m.load(words(m, x))
    wanted = [prod((a for a, b in zip(x, index, strict=True) if b == k), start=1) % n for k in range(buckets)]
    assert ints(m, m.bucket_products(cells, index, buckets)) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFL_THREADS", "3")
        assert ints(m, m.bucket_products(cells, index, buckets)) == wanted


@each_kind
@pytest.mark.parametrize(
    ("count", "each", "shift"), [(0, 2, 3), (1, 1, 5), (1, 3, 65), (20, 4, 7), (300, 2, 0)]
)
def test_joined(lanes: Holds, count: int, each: int, shift: int) -> None:
    n = 2**521 - 1
    m, draw = modulus(n, lanes), np.random.default_rng(count)
    x = [[int.from_bytes(draw.bytes(64), "big") % n for _ in range(each)] for _ in range(count)]
    wanted = [prod((pow(a, 2 ** (shift * k), n) for k, a in enumerate(row)), start=1) % n for row in x]
    cells = m.load(words(m, [a for row in x for a in row])).reshape(count, each, m.limbs)
    assert ints(m, m.joined(cells, shift)) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFL_THREADS", "3")
        assert ints(m, m.joined(cells, shift)) == wanted


@each_kind
def test_fixed_powers(lanes: Holds) -> None:
    n = 2**521 - 1
    m, bases = modulus(n, lanes), [3, n - 5, 7**100 % n]
    table = m.table(m.load(words(m, bases)), 8)
    digits = np.random.default_rng(0).integers(0, 8, (300, 3))
    wanted = [prod(pow(b, int(d), n) for b, d in zip(bases, row, strict=True)) % n for row in digits]
    assert ints(m, m.fixed_powers(table, digits)) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFL_THREADS", "3")
        assert ints(m, m.fixed_powers(table, digits)) == wanted


@each_kind
def test_a_modulus_that_no_kernel_has_is_refused(lanes: Holds) -> None:
    for n in (10, 2 ** (52 * MOST_LIMBS) + 1):
        with pytest.raises(ValueError, match="odd, of at most"):
            Modulus(n, lanes)
