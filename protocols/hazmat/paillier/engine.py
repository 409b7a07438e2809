"""What an encrypted array asks of whoever does the arithmetic.

An engine belongs to one key and works on rows of uint64 in a form of its own ("cells"): each method is the
batch form of one operation modulo n^2. It knows nothing of shapes, scales or bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from protocols.hazmat.paillier.words import Words

Cells = NDArray[Any]  # (m, width of the engine): one ciphertext a row
Index = NDArray[np.int64]


class Engine(Protocol):
    """Arithmetic on ciphertexts. Plaintexts are signed, of magnitude below n / 3."""

    @property
    def name(self) -> str:
        """As in `Paillier(backend=...)`. Engines of one name and one modulus share their cells."""

    def load(self, words: Words) -> Cells:
        """From numbers below n^2, little-endian."""

    def dump(self, cells: Cells) -> Words:
        """To numbers below n^2, little-endian."""

    def wrap(self, plain: Sequence[int]) -> Cells:
        """(1 + n)^m: hides nothing until it is multiplied by an obfuscator."""

    def multiply(self, a: Cells, b: Cells) -> Cells:
        """Row by row: adds the plaintexts."""

    def invert(self, a: Cells) -> Cells:
        """Row by row: negates the plaintexts."""

    def power(self, a: Cells, exponents: Sequence[int]) -> Cells:
        """Row by row: multiplies each plaintext by a signed integer."""

    def bucket_products(self, cells: Cells, index: Index, buckets: int) -> Cells:
        """(f, buckets, width): for each row of `index` (f, m) the product of the cells of each bucket.

        An index of -1 leaves the cell out. The product of no cells is 1, which decrypts to 0.
        """

    def weigh(self, cells: Cells) -> Cells:
        """(g, width) from (g, d, width): the product over k of cells[:, k]^k."""

    def join(self, cells: Cells, shift: int) -> Cells:
        """(g, width) from (g, d, width): the product over k of cells[:, k]^(2^(shift k))."""

    def obfuscators(self, count: int) -> Cells:
        """Fresh secret n-th residues, which decrypt to 0."""

    def decrypt(self, cells: Cells) -> list[int]:
        """The signed plaintexts; only with the private key."""
