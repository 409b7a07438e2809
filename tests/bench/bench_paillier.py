"""Encrypted arrays against phe with gmpy2, at 2048 bits, value for value in one run.

Each ratio is our time for one value over phe's time for one: phe is timed on fewer values, since its cost is
the same for each. One process; ours on one thread, and on one for each core, which phe has no use for.
Targets are those of CPUs with AVX512-IFMA; gmpy2, which runs anywhere, has lower ones of its own. Its
decryption is slower than phe's since it takes `powmod_sec`.
`VFL_KERNELS=on` measures "fma" too, where there is no IFMA.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from joblib import cpu_count

from protocols.hazmat.paillier import EncryptedArray, Fixed, Paillier, PaillierKey
from protocols.hazmat.paillier.keys import Backend, backends
from tests.bench import Ratio, Row, bench, ratio

Targets = dict[Backend, float]
FIXED = Fixed(limit=8.0, bits=40)
FACTORS = Fixed(limit=8.0, bits=16)
ROWS, COLUMNS, FEATURES, BINS = 30_000, 23, 12, 32


@cache
def key(backend: Backend) -> PaillierKey:
    public, private = pair()
    return PaillierKey(public, private, backend=backend)


@cache
def pair() -> tuple[Any, Any]:
    made = Paillier().new_key()
    return made.phe, made.phe_private


def values(count: int) -> Any:
    return np.random.default_rng(0).uniform(-8, 8, count)


def rows(backend: Backend, count: int) -> EncryptedArray:
    """`count` ciphertexts, of which a thousand differ: products cost the same."""
    a = key(backend).public().load(*key(backend).encrypt(values(min(count, 1000)), FIXED).dump())
    return a[np.arange(count) % 1000]


def each(
    ours: Callable[[], object], many: int, phe: Callable[[], object], few: int, repeats: int = 3
) -> Ratio:
    r = ratio(ours, phe, repeats)
    scale = few / many
    return Ratio(r.median * scale, r.low * scale, r.high * scale)


def table(what: str, targets: Targets, measure: Callable[[Backend], tuple[Ratio, str]]) -> list[Row]:
    found = []
    for backend in backends():
        for threads in (1,) if backend == "gmpy2" else (1, cpu_count()):
            os.environ["VFL_THREADS"] = str(threads)
            measured, note = measure(backend)
            times = f"{1 / measured.median:.1f}x faster; " if measured.median else ""
            name = f"{what}, {backend}" if threads == 1 else f"{what}, {backend}, {threads} threads"
            found.append(
                Row(name, measured, target=targets.get(backend, targets["gmpy2"]), note=times + note)
            )
    return found


@bench
def paillier_encrypt() -> list[Row]:
    """By the key's owner, ready to send."""

    def measure(backend: Backend) -> tuple[Ratio, str]:
        mine, x, theirs = key(backend), values(2000), values(40).tolist()
        return (
            each(lambda: mine.encrypt(x, FIXED), 2000, lambda: [mine.phe.encrypt(v) for v in theirs], 40),
            "2,000 floats against 40 by phe",
        )

    return table("encrypt", {"ifma": 1 / 100, "gmpy2": 1 / 12}, measure)


@bench
def paillier_decrypt() -> list[Row]:
    """One value a ciphertext, and as many as fit for sums of 30,000."""

    def measure(backend: Backend, terms: int | None = None) -> tuple[Ratio, str]:
        mine, x = key(backend), values(400)
        a, theirs = mine.encrypt(x, FIXED, terms=terms), [mine.phe.encrypt(v) for v in x[:100].tolist()]
        found = each(lambda: mine.decrypt(a), 400, lambda: [mine.phe_private.decrypt(c) for c in theirs], 100)
        return found, f"400 floats, {a.layout.slots} a ciphertext, against 100 by phe"

    one = table("decrypt", {"ifma": 1 / 5, "gmpy2": 1.8}, measure)
    packed = table("decrypt packed", {"ifma": 1 / 100, "gmpy2": 1 / 10}, lambda b: measure(b, ROWS))
    return one + packed


@bench
def paillier_add() -> list[Row]:
    """Two arrays of ciphertexts."""

    def measure(backend: Backend) -> tuple[Ratio, str]:
        a, b = rows(backend, ROWS), rows(backend, ROWS)
        theirs = [key(backend).phe.encrypt(v) for v in values(50).tolist()]
        pairs = [(x, y) for x in theirs for y in theirs[:40]]
        found = each(lambda: a + b, ROWS, lambda: [x + y for x, y in pairs], len(pairs))
        return found, f"{ROWS:,} pairs against 2,000 by phe, exponents as phe chose them"

    return table("add", {"ifma": 1 / 40, "gmpy2": 0.8}, measure)


@bench
def paillier_matmul() -> list[Row]:
    """X^T [[g]], X in 16 fraction bits; by phe X as floats, as one writes it there, or as those integers."""
    X = np.random.default_rng(1).uniform(-8, 8, (ROWS, COLUMNS))
    encoded, few = FACTORS.encode(X), 4
    public = key(backends()[0]).phe
    theirs = [public.encrypt(v, precision=2.0**-40) for v in values(few).tolist()]

    def by_phe(factors: Any) -> list[Any]:
        rows = list(zip(theirs, factors[:few].tolist(), strict=True))
        return [sum_of(c * row[j] for c, row in rows) for j in range(COLUMNS)]

    def measure(backend: Backend, factors: Any, kind: str) -> tuple[Ratio, str]:
        g = rows(backend, ROWS)
        found = each(lambda: g.matmul(encoded), ROWS, lambda: by_phe(factors), few, repeats=2)
        return found, f"{ROWS:,} x {COLUMNS} against {few} x {COLUMNS} {kind} by phe"

    return [
        *table("X^T [[g]]", {"ifma": 1 / 50, "gmpy2": 1 / 15}, lambda b: measure(b, X, "floats")),
        *table(
            "X^T [[g]] whole",
            {"ifma": 1 / 25, "gmpy2": 1 / 5},
            lambda b: measure(b, encoded.ints, "of the same integers"),
        ),
    ]


@bench
def paillier_histogram() -> list[Row]:
    """Sums of 30,000 rows into 32 bins of each of 12 features; and gradient and hessian in one plaintext."""

    def measure(backend: Backend, across: int = 1) -> tuple[Ratio, str]:
        index = np.random.default_rng(2).integers(0, BINS, (ROWS, FEATURES))
        few = 400
        theirs = [key(backend).phe.encrypt(v, precision=2.0**-40) for v in values(40).tolist()]
        g = rows(backend, ROWS)
        if across == 2:
            packed = key(backend).encrypt(values(2000).reshape(-1, 2), FIXED, terms=ROWS)
            g = packed[np.arange(ROWS) % 1000]

        def by_phe() -> list[Any]:
            bins: dict[tuple[int, int, int], Any] = {}
            for row in range(few):
                for feature, bucket in enumerate(index[row].tolist()):
                    for value in range(across):
                        place, c = (value, feature, bucket), theirs[row % 40]
                        bins[place] = c if place not in bins else bins[place] + c
            return list(bins.values())

        found = each(lambda: g.bucket_sum(index, BINS), ROWS, by_phe, few)
        return found, f"{ROWS:,} rows, {FEATURES} x {BINS} bins of {across}, against {few} rows by phe"

    one = table("histogram", {"ifma": 1 / 50, "gmpy2": 1 / 3}, measure)
    pairs = table("histogram of pairs", {"ifma": 1 / 100, "gmpy2": 1 / 6}, lambda b: measure(b, across=2))
    return one + pairs


def sum_of(terms: Any) -> Any:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
