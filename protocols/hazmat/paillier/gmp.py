"""Paillier's arithmetic through gmpy2: the portable engine, and the reference for any other.

**The obfuscators.** Paillier multiplies (1 + n)^m by r^n for a random r. Both shortcuts here need fewer
products, and rest on no assumption beyond Paillier's own (n-th residues modulo n^2 look random: DCR):

- *The key's owner* takes one random residue h = r^n, keeps its powers modulo p^2 and q^2 (a comb, after
  Brickell et al. 1992), and uses h^s with s of |n| + 128 bits. Which subgroup h generates is not known and
  does not matter. Were h instead a random element h (1 + n)^u, which by DCR nobody can tell, h^s would carry
  the factor (1 + n)^(us); s mod n is uniform and independent of h^s (h's order is prime to n, and s may be
  thought 2 |n| + 128 bits long, which changes h^s by 2^-128), so every plaintext would be hidden perfectly.
  Short exponents, as in Damgård, Jurik and Nielsen (2010), need a further assumption, and their base -x^2
  needs p = q = 3 mod 4, which phe's keys do not promise.
- *Everybody else* re-randomises against the owner too, who can read the residue itself and could tell the
  cosets of a smaller group, so powers of one base are not enough. They take |n| + 640 random bits, in runs of
  16 as exponents of independent random residues: 168 of them for 2048 bits. The product is within 2^-70 of
  uniform over *all* n-th residues, but for a chance of 2^-65 in drawing bases. For that the bases have to
  reach every coset: by a character of order 2 all but one in 2^168 draws do, and there are at most 2^102 such
  characters for any n without factors below 2^20 (`proof`), whoever made it; those of higher orders are fewer
  for what bases they take. Each base costs an r^n, so a few obfuscators are made as r^n.

Nobody is trusted for a base: each party draws its own in each process, and none is sent.

**Timing.** gmpy2 is not constant-time, except `powmod_sec`, which decryption uses (1.4 times the price of
`powmod`). Encrypting looks secret digits up in a table, and multiplying by private plain numbers takes longer
for larger ones: code that shares the CPU could learn of them. A peer sees only when a whole message leaves.

Batches go through joblib: in one process unless `joblib.parallel_config` says otherwise, in which case
workers are handed the key.

Sources: Paillier 1999; Damgård, Jurik and Nielsen 2010 (doi:10.1007/s10207-010-0119-9), section 4; Håstad,
Impagliazzo, Levin and Luby 1999 (the lemma); Pippenger 1976 for `weigh`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from gmpy2 import invert, mpz, powmod, powmod_sec, unpack
from joblib import Parallel, delayed, effective_n_jobs

from protocols.hazmat.paillier.engine import Cells, Index
from protocols.hazmat.paillier.words import Words, to_ints, to_words, word_count

Table = list[list[Any]]  # a row of powers for each digit of an exponent
_DIGIT = (
    9  # bits of the owner's exponents: 35 MB of powers at 2048 bits, and a third of a second to make them
)
EXTRA = 640  # bits of exponents beyond those of n; see above
FEW = 256  # obfuscators; the comb of random bases costs about as much as 180 of them made as r^n


class Gmp:
    """The engine over gmpy2: cells are words. `p` and `q` only at the key's owner."""

    name = "gmpy2"

    def __init__(self, n: int, p: int = 0, q: int = 0) -> None:
        self._n, self._nn = mpz(n), mpz(n) ** 2
        self._width = word_count(2 * n.bit_length())
        self._primes = (p, q) if p else None
        self._made = 0  # obfuscators, so far

    def load(self, words: Words) -> Cells:
        return words

    def dump(self, cells: Cells) -> Words:
        return cells

    def wrap(self, plain: Sequence[int]) -> Cells:
        n, nn = self._n, self._nn
        return self._cells([(1 + m % n * n) % nn for m in plain])

    def multiply(self, a: Cells, b: Cells) -> Cells:
        nn = self._nn
        return self._cells([x * y % nn for x, y in zip(to_ints(a), to_ints(b), strict=True)])

    def invert(self, a: Cells) -> Cells:
        return self._cells([invert(x, self._nn) for x in to_ints(a)])

    def power(self, a: Cells, exponents: Sequence[int]) -> Cells:
        return _batches(_powers, [(a[at], exponents[at]) for at in _parts(len(a), 64)], self._nn)

    def bucket_products(self, cells: Cells, index: Index, buckets: int) -> Cells:
        tasks = [(cells, index[at], buckets) for at in _parts(len(index), 1)]
        return _batches(_bucket_products, tasks, self._nn).reshape(len(index), buckets, self._width)

    def weigh(self, cells: Cells) -> Cells:
        nn, groups = self._nn, len(cells)
        ints = to_ints(cells.reshape(-1, self._width))
        each = len(ints) // groups if groups else 0
        totals = []
        for start in range(0, len(ints), each or 1):
            running = total = mpz(1)
            for x in reversed(ints[start + 1 : start + each]):
                running = running * x % nn
                total = total * running % nn
            totals.append(total)
        return self._cells(totals)

    def join(self, cells: Cells, shift: int) -> Cells:
        return _batches(_joined_cells, [(cells[at], shift) for at in _parts(len(cells), 4)], self._nn)

    def obfuscators(self, count: int) -> Cells:
        if not count:
            return self._cells([])
        self._made += count
        if self._primes is not None:
            return _batches(_owner_residues, [(_size(at),) for at in _parts(count, 256)], *self._primes)
        if self._made <= FEW:
            return _batches(_textbook_residues, [(_size(at),) for at in _parts(count, 16)], self._n)
        return _batches(_public_residues, [(_size(at),) for at in _parts(count, 256)], self._n)

    def decrypt(self, cells: Cells) -> list[int]:
        if self._primes is None:
            raise ValueError("only an engine with the private key decrypts")
        words = _batches(_decrypt, [(cells[at],) for at in _parts(len(cells), 16)], *self._primes)
        return signed(to_ints(words), self._n)

    def _cells(self, ints: Sequence[Any]) -> Cells:
        return to_words(ints, self._width)


def _parts(count: int, least: int) -> list[slice]:
    """Even parts, one for each worker that the user's joblib settings give, none smaller than `least`."""
    workers = effective_n_jobs(Parallel().n_jobs)
    pieces = max(1, min(workers, count // least))
    edges = [count * k // pieces for k in range(pieces + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def _batches(fn: Callable[..., Words], tasks: Sequence[tuple[Any, ...]], *key: Any) -> Words:
    if len(tasks) == 1:
        return fn(*key, *tasks[0])
    # Nothing of a task is written to disk for the workers to map: part of it may be secret.
    done = Parallel(max_nbytes=None)(delayed(fn)(*key, *task) for task in tasks)
    return np.concatenate(done)


def _powers(nn: Any, cells: Words, exponents: Sequence[int]) -> Words:
    powers = [powmod(x, mpz(k), nn) for x, k in zip(to_ints(cells), exponents, strict=True)]
    return to_words(powers, cells.shape[1])


def _bucket_products(nn: Any, cells: Words, index: Index, buckets: int) -> Words:
    ints = to_ints(cells)
    products: list[Any] = []
    for bucket_of in index.tolist():
        found: list[Any] = [None] * buckets
        for x, bucket in zip(ints, bucket_of, strict=True):
            if bucket >= 0:
                held = found[bucket]
                found[bucket] = x if held is None else held * x % nn
        products += [mpz(1) if held is None else held for held in found]
    return to_words(products, cells.shape[1])


def _joined_cells(nn: Any, cells: Words, shift: int) -> Words:
    groups, each, width = cells.shape
    ints, power = to_ints(cells.reshape(-1, width)), mpz(1) << shift
    totals = []
    for start in range(0, groups * each, each):
        total = ints[start + each - 1]
        for x in reversed(ints[start : start + each - 1]):
            total = powmod(total, power, nn) * x % nn
        totals.append(total)
    return to_words(totals, width)


def _table(base: Any, modulus: Any, digits: int, bits: int) -> Table:
    """The powers of `base` with which an exponent of so many digits needs one product for each of them."""
    table = []
    for _ in range(digits):
        row = [mpz(1)]
        for _ in range(2**bits - 1):
            row.append(row[-1] * base % modulus)
        table.append(row)
        base = row[-1] * base % modulus
    return table


def _product(table: Table, digits: Sequence[Any], modulus: Any) -> Any:
    product = mpz(1)
    for row, digit in zip(table, digits, strict=False):  # leading zeros may be missing
        product = product * row[digit] % modulus
    return product


def residue(n: Any) -> Any:
    return powmod(1 + secrets.randbelow(int(n) - 1), n, n * n)


@lru_cache(maxsize=4)
def _owner_tables(p: int, q: int) -> tuple[Table, Table]:
    h = residue(mpz(p) * q)
    by_p, by_q = ((mpz(x) ** 2, -(-x.bit_length() // _DIGIT)) for x in (p, q))
    return _table(h % by_p[0], *by_p, _DIGIT), _table(h % by_q[0], *by_q, _DIGIT)


def owner_exponents(p: int, q: int, count: int) -> tuple[list[int], list[int]]:
    """Secret exponents s of h: s mod (p - 1) for its powers modulo p^2, and s mod (q - 1) modulo q^2."""
    drawn = [secrets.randbits((p * q).bit_length() + 128) for _ in range(count)]
    return [s % (p - 1) for s in drawn], [s % (q - 1) for s in drawn]


def joined(a: Sequence[Any], b: Sequence[Any], x: Any, y: Any) -> list[Any]:
    """The numbers below x y that are a modulo x and b modulo y."""
    back = invert(x, y)
    return [r + x * ((s - r) * back % y) for r, s in zip(a, b, strict=True)]


def _owner_residues(p: int, q: int, count: int) -> Words:
    pp, qq, tables = mpz(p) ** 2, mpz(q) ** 2, _owner_tables(p, q)
    a, b = (
        [_product(table, unpack(mpz(s), _DIGIT), xx) for s in exponents]
        for table, exponents, xx in zip(tables, owner_exponents(p, q, count), (pp, qq), strict=True)
    )
    return to_words(joined(a, b, pp, qq), word_count(2 * (p * q).bit_length()))


@lru_cache(maxsize=4)
def _public_table(n: Any) -> Table:
    bases = -(-(n.bit_length() + EXTRA) // 16)
    return [row for _ in range(bases) for row in _table(residue(n), n * n, 2, 8)]


def _public_residues(n: Any, count: int) -> Words:
    table = _public_table(n)
    residues = [_product(table, secrets.token_bytes(len(table)), n * n) for _ in range(count)]
    return to_words(residues, word_count(2 * n.bit_length()))


def _textbook_residues(n: Any, count: int) -> Words:
    return to_words([residue(n) for _ in range(count)], word_count(2 * n.bit_length()))


def _decrypt(p: int, q: int, cells: Words) -> Words:
    ciphertexts = to_ints(cells)
    a, b = ([powmod_sec(c, x - 1, mpz(x) ** 2) for c in ciphertexts] for x in (p, q))
    return to_words(opened(a, b, p, q), word_count((p * q).bit_length()))


def opened(a: Sequence[Any], b: Sequence[Any], p: int, q: int) -> list[Any]:
    """Plaintexts from c^(p-1) mod p^2 and c^(q-1) mod q^2: Paillier 1999, section 7."""
    mp, mq = (
        [(power - 1) // x * scale % x for power in powers]
        for powers, x, scale in ((a, p, invert(-q, p)), (b, q, invert(-p, q)))
    )
    return joined(mp, mq, p, q)


def signed(plain: Sequence[Any], n: Any) -> list[int]:
    """Plaintexts below n as numbers around 0."""
    return [int(m - n if m > n // 2 else m) for m in plain]
