"""Batches of products modulo one odd number, and powers: what `gmpy2` does for one number at a time.

No party: arithmetic. Numbers go in and out as rows of 64-bit words; between, they are `Cells`, rows of limbs
in Montgomery's form, one row a number. `lanes="int"` is for CPUs with AVX512-IFMA, "float" for those that
fuse a product and a sum (AVX2 with FMA); either gives the right numbers anywhere, if slowly.

Not constant-time: powers read tables at digits of the exponent. Compiled at first use (some ten seconds) and
kept in the user's cache. The kernels hold no GIL, so joblib's threads share the work where the user's
settings say so.

Sources: Montgomery 1985; Koç, Acar and Kaliski 1996 (CIOS); Gueron and Krasnov 2012 (limbs in vectors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from gmpy2 import invert, mpz
from numpy.typing import NDArray

from protocols.hazmat import montgomery_kernels as kernels
from protocols.hazmat import threads
from protocols.hazmat.lanes import COUNT

Holds = Literal["int", "float"]
Cells = NDArray[Any]  # (m, limbs): uint64 or float64
Index = NDArray[np.int64]
Words = NDArray[np.uint64]  # (m, words), little-endian
MOST_LIMBS = 250  # sums of halves stay below 2^60
_BITS = {"int": 52, "float": 51}


class Modulus:
    """Arithmetic modulo an odd n, which is no secret to whoever shares the CPU."""

    def __init__(self, n: int, lanes: Holds) -> None:
        self.n, self.lanes = mpz(n), COUNT[lanes]
        self.bits = _BITS[lanes]
        self.width = -(-int(n).bit_length() // 64)
        # Room for 2 n, and for the sign of every word that `freeze` writes.
        self.limbs = -(-max(int(n).bit_length() + 3, 64 * self.width) // self.bits)
        self.limbs += self.limbs % 2  # products take two at once
        if n % 2 == 0 or self.limbs > MOST_LIMBS:
            raise ValueError(f"a modulus should be odd, of at most {MOST_LIMBS} limbs; got {self.limbs}")
        self._type: Any = np.uint64 if lanes == "int" else np.float64
        radix = mpz(2) ** self.bits
        k = int(-invert(self.n, radix) % radix)
        excess = 2 * (kernels.TOP_BITS + kernels.LAST_BITS) if lanes == "float" else 0
        last = 2 * kernels.TOP_BITS if lanes == "float" else 0
        spread = np.ones((1, self.lanes), self._type)
        self._words = self._row(self.n)
        n_limbs = self._thaw(self._words)[0]
        signed = k - (1 << 51) if lanes == "float" and k >= 1 << 50 else k
        k_row = np.full((1, self.lanes), signed).astype(self._type)
        self._field = (n_limbs[:, None] * spread, k_row, *(np.uint64(x % 2**64) for x in (excess, last)))
        big = mpz(2) ** (self.bits * self.limbs)
        self._square = self._thaw(self._row(big * big % self.n))
        self._unit = self._thaw(self._row(mpz(1)))
        self.one = self._thaw(self._row(big % self.n))  # (1, limbs): 1 in Montgomery's form

    def load(self, words: Words) -> Cells:
        """From numbers below n."""
        return self.multiply(self._thaw(words), self._square)

    def dump(self, cells: Cells) -> Words:
        """To numbers below n."""
        plain = self.multiply(cells, self._unit)
        words = np.empty((len(cells), self.width), np.uint64)
        kernels.freeze(plain.astype(np.int64), self.bits, self._words[0], words)
        return words

    def multiply(self, a: Cells, b: Cells) -> Cells:
        """Row by row; one row serves all of the other's."""
        count = len(a) if len(b) == 1 else len(b)

        def run(at: slice, out: Cells) -> None:
            x, y = (c[at] if len(c) > 1 else c for c in (a, b))
            kernels.multiply(_laid(x), _laid(y), out, self._field, self._work(3))

        return self._shared(count, run)

    def power(self, cells: Cells, exponents: Sequence[int]) -> Cells:
        """Row by row, for exponents of at least 0. One exponent serves all rows."""
        bits = max((int(e).bit_length() for e in exponents), default=0)
        raw = b"".join(int(e).to_bytes(-(-bits // 8) or 1, "big") for e in exponents)
        whole = np.frombuffer(raw, np.uint8).reshape(len(exponents), -(-bits // 8) or 1)
        digits = np.stack([whole >> 4, whole & 15], axis=2).astype(np.int64)
        digits = digits.reshape(len(exponents), 2 * whole.shape[1])

        def run(at: slice, out: Cells) -> None:
            mine = _laid(digits[at] if len(digits) > 1 else digits)
            kernels.power(_laid(cells[at]), mine, self.one, out, self._field, self._work(19))

        return self._shared(len(cells), run, max(1, bits))

    def joined(self, cells: Cells, shift: int) -> Cells:
        """(g, limbs) from (g, d, limbs): the product over k of cells[:, k] to the power 2^(shift k)."""
        groups, each, _ = cells.shape

        def run(at: slice, out: Cells) -> None:
            mine = _laid(cells[at]).reshape(-1, self.limbs)
            kernels.joined(mine, each, shift, out, self._field, self._work(3))

        return self._shared(groups, run, each * (shift + 1))

    def bucket_products(self, cells: Cells, index: Index, buckets: int) -> Cells:
        """(buckets, limbs): the product of the cells that have each index; -1 leaves a cell out.

        Long runs of one bucket are cut into pieces, so that all lanes have work, and those multiplied again.
        """
        # Of numbers of 16 bits numpy counts the digits instead of comparing them: nine times as fast.
        narrow = index.astype(np.int16) if buckets <= 2**15 else index
        rows = np.argsort(narrow, kind="stable")
        starts = np.searchsorted(index[rows], np.arange(buckets + 1))
        longest = max(16, -(-len(index) // 256))
        pieces = -(-np.diff(starts) // longest)
        if pieces.max(initial=0) <= 1:
            return self._products(cells, rows, starts[:-1], starts[1:])
        bucket = np.repeat(np.arange(buckets), pieces)
        nth = np.arange(len(bucket)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begin = starts[bucket] + nth * longest
        end = np.minimum(begin + longest, starts[bucket + 1])
        return self.bucket_products(self._products(cells, rows, begin, end), bucket, buckets)

    def _products(self, cells: Cells, rows: Index, begin: Index, end: Index) -> Cells:
        order = np.argsort(begin - end, kind="stable")  # lanes side by side have runs of like length
        out = np.empty((len(begin), self.limbs), self._type)
        pieces = self._pieces(len(rows))

        def run(piece: int) -> None:
            mine = _laid(order[piece::pieces])  # to each thread long runs and short ones
            kernels.bucket_products(
                _laid(cells), rows, begin, end, mine, self.one, out, self._field, self._work(3)
            )

        threads.run([partial(run, piece) for piece in range(pieces)])
        return out

    def table(self, bases: Cells, size: int) -> Cells:
        """(m, size, limbs): the powers 0 to size - 1 of each base, for `fixed_powers`."""
        powers = np.empty((len(bases), size, self.limbs), self._type)
        powers[:, 0] = self.one
        for k in range(1, size):
            powers[:, k] = self.multiply(_laid(powers[:, k - 1]), bases)
        return powers

    def fixed_powers(self, table: Cells, digits: Index) -> Cells:
        """out[i] = the product over w of table[w, digits[i, w]]."""

        def run(at: slice, out: Cells) -> None:
            kernels.fixed_powers(table, _laid(digits[at]), out, self._field, self._work(3))

        return self._shared(len(digits), run)

    def _shared(self, count: int, run: Callable[[slice, Cells], None], products: int = 1) -> Cells:
        """Rows 0 to count, in one part for each thread; products: how many a row takes, at least."""
        out = np.empty((count, self.limbs), self._type)
        vectors = -(-count // self.lanes)
        pieces = max(1, min(self._pieces(count * products), vectors))
        edges = [min(count, vectors * k // pieces * self.lanes) for k in range(pieces + 1)]
        parts = [slice(a, b) for a, b in pairwise(edges)]
        threads.run([partial(run, at, out[at]) for at in parts])
        return out

    def _pieces(self, products: int) -> int:
        """For how many threads there is work: handing over costs as much as a hundred products."""
        return max(1, min(threads.count(), products // (16 * self.lanes)))

    def _work(self, count: int) -> Cells:
        return np.empty((count, self.limbs, self.lanes), self._type)

    def _thaw(self, words: Words) -> Cells:
        cells = np.empty((len(words), self.limbs), np.int64)
        kernels.thaw(_laid(words), self.bits, cells)
        return cells.astype(self._type)

    def _row(self, number: Any) -> Words:
        raw = int(number).to_bytes(8 * self.width, "little")
        return np.frombuffer(raw, np.uint64).reshape(1, -1)


def _laid(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array)
