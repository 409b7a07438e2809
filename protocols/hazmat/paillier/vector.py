"""Paillier's arithmetic in lanes of numba: the same as `gmp`, batch by batch, and faster where the CPU helps.

Cells are limbs in Montgomery's form modulo n^2. What is assumed of the obfuscators is said in `gmp`.

The exponents of decryption and of obfuscators choose which entries of tables are read, so unlike `powmod_sec`
this is not constant-time to code that shares the CPU's caches. Nothing branches on them.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from gmpy2 import invert, mpz

from protocols.hazmat.montgomery import MOST_LIMBS, Holds, Modulus
from protocols.hazmat.paillier.engine import Cells, Index
from protocols.hazmat.paillier.gmp import EXTRA, joined, opened, owner_exponents, residue, signed
from protocols.hazmat.paillier.words import Words, to_ints, to_words

Name = Literal["ifma", "fma"]
LANES: dict[Name, Holds] = {"ifma": "int", "fma": "float"}
MOST_BITS = MOST_LIMBS * 51 // 2 - 2  # of a key
FEW = 64  # obfuscators; the comb of random bases costs about as much as 160 of them made as r^n


class Vector:
    """The engine over `montgomery`. `p` and `q` only at the key's owner."""

    def __init__(self, name: Name, n: int, p: int = 0, q: int = 0) -> None:
        self.name, self._n = name, mpz(n)
        self._whole = Modulus(n * n, LANES[name])
        self._primes = (p, q) if p else None
        self._halves = [Modulus(x * x, LANES[name]) for x in (p, q) if x]
        self._tables: list[Cells] = []
        self._made = 0  # obfuscators, so far

    def load(self, words: Words) -> Cells:
        return self._whole.load(words)

    def dump(self, cells: Cells) -> Words:
        return self._whole.dump(cells)

    def wrap(self, plain: Sequence[int]) -> Cells:
        n = self._n
        return self._from_ints([(1 + m % n * n) % (n * n) for m in plain])

    def multiply(self, a: Cells, b: Cells) -> Cells:
        return self._whole.multiply(a, b)

    def invert(self, a: Cells) -> Cells:
        """By one inversion of the product of all, and three products for each (Montgomery 1987)."""
        if len(a) < 2:
            ints = to_ints(self.dump(a))
            return self._from_ints([invert(x, self._n**2) for x in ints])
        even, odd = a[0::2], a[1::2]
        if len(odd) < len(even):
            odd = np.concatenate([odd, self._whole.one])
        products = self.invert(self.multiply(even, odd))
        inverses = np.stack([self.multiply(products, odd), self.multiply(products, even)], axis=1)
        return inverses.reshape(-1, a.shape[1])[: len(a)]

    def power(self, a: Cells, exponents: Sequence[int]) -> Cells:
        negative = np.array([k < 0 for k in exponents], dtype=bool)
        if negative.any():
            a = a.copy()
            a[negative] = self.invert(a[negative])
        return self._whole.power(a, [abs(k) for k in exponents])

    def bucket_products(self, cells: Cells, index: Index, buckets: int) -> Cells:
        products = [self._whole.bucket_products(cells, one, buckets) for one in index]
        return np.stack(products) if products else np.empty((0, buckets, cells.shape[1]), cells.dtype)

    def weigh(self, cells: Cells) -> Cells:
        running = total = np.repeat(self._whole.one, len(cells), axis=0)
        for k in range(cells.shape[1] - 1, 0, -1):
            running = self.multiply(running, cells[:, k])
            total = self.multiply(total, running)
        return total

    def join(self, cells: Cells, shift: int) -> Cells:
        return self._whole.joined(cells, shift)

    def obfuscators(self, count: int) -> Cells:
        if not count:
            return self._from_ints([])
        self._made += count
        if self._primes is None and self._made <= FEW:
            return self._residues(count)
        if not self._tables:
            self._tables = self._make_tables()
        if self._primes is None:
            (table,) = self._tables
            digits = np.frombuffer(secrets.token_bytes(count * len(table)), np.uint8)
            return self._whole.fixed_powers(table, digits.reshape(count, -1).astype(np.int64))
        p, q = self._primes
        drawn = owner_exponents(p, q, count)
        a, b = (
            to_ints(half.dump(half.fixed_powers(table, _bytes_of(exponents, len(table)))))
            for half, table, exponents in zip(self._halves, self._tables, drawn, strict=True)
        )
        return self._from_ints(joined(a, b, mpz(p) ** 2, mpz(q) ** 2))

    def decrypt(self, cells: Cells) -> list[int]:
        if self._primes is None:
            raise ValueError("only an engine with the private key decrypts")
        ciphertexts = to_ints(self.dump(cells))
        powers: list[list[Any]] = []
        for half, prime in zip(self._halves, self._primes, strict=True):
            loaded = half.load(to_words([c % half.n for c in ciphertexts], half.width))
            powers.append(to_ints(half.dump(half.power(loaded, [prime - 1]))))
        return signed(opened(powers[0], powers[1], *self._primes), self._n)

    def _make_tables(self) -> list[Cells]:
        n = self._n
        if self._primes is None:
            bases = self._residues(-(-(n.bit_length() + EXTRA) // 16))
            pairs = np.stack([bases, self._whole.power(bases, [256])], axis=1)
            return [self._whole.table(pairs.reshape(-1, bases.shape[1]), 256)]
        h, tables = residue(n), []
        for half, prime in zip(self._halves, self._primes, strict=True):
            powers = [h % half.n]
            for _ in range(-(-prime.bit_length() // 8) - 1):
                powers.append(pow(powers[-1], 256, half.n))
            tables.append(half.table(half.load(to_words(powers, half.width)), 256))
        return tables

    def _residues(self, count: int) -> Cells:
        """r^n of so many random r: `gmp.residue` in lanes."""
        drawn = [1 + secrets.randbelow(int(self._n) - 1) for _ in range(count)]
        return self._whole.power(self._from_ints(drawn), [int(self._n)])

    def _from_ints(self, ints: Sequence[Any]) -> Cells:
        return self.load(to_words(ints, self._whole.width))


def _bytes_of(exponents: Sequence[int], width: int) -> Index:
    raw = b"".join(int(e).to_bytes(width, "little") for e in exponents)
    return np.frombuffer(raw, np.uint8).reshape(-1, width).astype(np.int64)


@cache
def works(name: Name) -> bool:
    """Whether the kernels give what Python's integers give, tried once in a process; if not, it warns."""
    n = 2**521 - 1
    m = Modulus(n, LANES[name])
    numbers = [0, 1, 2, n - 1, n - 2, n // 2, *(secrets.randbelow(n) for _ in range(14))]
    others = numbers[::-1]
    a, b = (m.load(to_words([mpz(x) for x in these], m.width)) for these in (numbers, others))
    table, digits = m.table(a[6:8], 16), np.arange(16)[:, None].repeat(2, axis=1)
    index = np.arange(20) % 3
    found = [m.multiply(a, b), m.power(a, others), m.fixed_powers(table, digits)]
    found.append(m.joined(np.stack([a, b], axis=1), 3))
    wanted = [
        [x * y % n for x, y in zip(numbers, others, strict=True)],
        [pow(x, y, n) for x, y in zip(numbers, others, strict=True)],
        [pow(numbers[6] * numbers[7], k, n) for k in range(16)],
        [x * pow(y, 8, n) % n for x, y in zip(numbers, others, strict=True)],
    ]
    right = all(to_ints(m.dump(f)) == w for f, w in zip(found, wanted, strict=True))
    sums = to_ints(m.dump(m.bucket_products(a[1:], index[1:], 3)))
    for bucket in range(3):
        product = 1
        for number, place in zip(numbers[1:], index[1:].tolist(), strict=True):
            product = product * number % n if place == bucket else product
        right = right and sums[bucket] == product
    if not right:
        warnings.warn(f"the {name} kernels compute wrong numbers on this CPU; gmpy2 is used", stacklevel=2)
    return right
