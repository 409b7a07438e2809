"""The same arrays with nothing encrypted: for experiments, and for measuring what encryption costs.

Everything but the ciphertexts is as under Paillier: scales, packing, bounds, what is refused and which
numbers come out. Every value is readable to whoever sees it, so a run that used this has to say so
(`is_plain`), and a program that would use it is plain to a party's policy: `Program.plain` of
`protocols.programs`, which `allow_plain` decides about.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from protocols.errors import ConfigError, ProtocolError
from protocols.hazmat.paillier.array import EncryptedArray
from protocols.hazmat.paillier.engine import Cells, Index
from protocols.hazmat.paillier.fixed import Array, Fixed
from protocols.hazmat.paillier.layout import Header, Layout, plan, read_header
from protocols.hazmat.paillier.words import Words, to_ints, to_words, word_count


@dataclass(frozen=True)
class Plain:
    """Settings that encrypt nothing. `bits`: the key whose room and packing are imitated."""

    bits: int = 2048
    is_plain: ClassVar[bool] = True

    def new_key(self) -> PlainKey:
        """A name for arrays that belong together; there is no secret."""
        return PlainKey(secrets.token_bytes(16), self.bits, can_decrypt=True)

    def key_from_bytes(self, raw: bytes) -> PlainKey:
        """A peer's key, as its `to_bytes` gave it."""
        if len(raw) != 16:
            raise ProtocolError(f"a plain key has 16 bytes, got {len(raw)}")
        return PlainKey(raw, self.bits, can_decrypt=False)


@dataclass(frozen=True)
class PlainKey:
    """Has the interface of a Paillier key, and no secret."""

    name: bytes
    bits: int
    can_decrypt: bool
    is_plain: ClassVar[bool] = True

    @property
    def engine(self) -> Adder:
        """Integers in the place of ciphertexts."""
        return _ADDER

    @property
    def modulus(self) -> int:
        """As of a key that has so many bits."""
        return 1 << self.bits

    @property
    def fingerprint(self) -> str:
        """Of this key and no other."""
        return "plain " + self.name.hex()

    def public(self) -> PlainKey:
        """The same key at a party that is not to decrypt."""
        return PlainKey(self.name, self.bits, can_decrypt=False)

    def to_bytes(self) -> bytes:
        """For a peer's `key_from_bytes`."""
        return self.name

    def encrypt(
        self, x: Any, fixed: Fixed, *, terms: int | None = None, times: Fixed | None = None, spare: int = 0
    ) -> EncryptedArray:
        """The numbers as they are, in the layout that they would have under Paillier."""
        layout = plan(np.shape(x), fixed, self.bits - 2 - spare, terms, times)
        return EncryptedArray(self, self.engine.wrap(layout.pack(fixed.encode(x).ints)), layout, fresh=True)

    def decrypt(self, array: EncryptedArray) -> Array:
        """The numbers. ConfigError as under Paillier."""
        if not self.can_decrypt or array.key.fingerprint != self.fingerprint:
            raise ConfigError(f"this key does not open {array!r}; only the one that it was made under does")
        layout = array.layout
        return layout.decode(layout.unpack(self.engine.decrypt(array.rows)))

    def load(self, words: Words, head: Header) -> EncryptedArray:
        """What a peer's `dump` gave. ProtocolError if it is not whole, or not of this key."""
        layout = read_header(head, self.fingerprint, self.bits - 2)
        width = _width(layout)
        if words.dtype != np.uint64 or words.shape != (layout.count, width):
            raise ProtocolError(
                f"values should be uint64 [{layout.count}, {width}], got {words.dtype} {list(words.shape)}"
            )
        whole = 2 ** (64 * width)
        ints = [int(v) - whole * (v >= whole // 2) for v in to_ints(words)]
        return EncryptedArray(self, self.engine.wrap(ints), layout)

    def obfuscators(self, count: int) -> Cells:
        """Nothing is hidden by them."""
        return self.engine.wrap([0] * count)

    def filling(self, limit: int = 4096) -> AbstractContextManager[None]:
        """There is nothing to prepare."""
        return nullcontext()

    def words(self, cells: Cells, layout: Layout) -> Words:
        """Two's complement, as wide as the layout's bound needs."""
        width = _width(layout)
        return to_words([int(v) % 2 ** (64 * width) for v in cells.ravel().tolist()], width)


class Adder:
    """An engine whose ciphertexts are the plaintexts, as Python integers."""

    name = "plain"

    def load(self, words: Words) -> Cells:
        raise NotImplementedError("plain values are loaded by their key, which knows how wide they are")

    def dump(self, cells: Cells) -> Words:
        raise NotImplementedError("plain values are dumped by their key, which knows how wide they are")

    def wrap(self, plain: Sequence[int]) -> Cells:
        cells = np.empty((len(plain), 1), dtype=object)
        cells[:, 0] = plain
        return cells

    def multiply(self, a: Cells, b: Cells) -> Cells:
        return np.asarray(a + b)

    def invert(self, a: Cells) -> Cells:
        return np.asarray(-a)

    def power(self, a: Cells, exponents: Sequence[int]) -> Cells:
        return np.asarray(a * self.wrap(exponents))

    def bucket_products(self, cells: Cells, index: Index, buckets: int) -> Cells:
        sums = np.full((len(index), buckets, 1), 0, dtype=object)
        for row, bucket_of in zip(sums, index, strict=True):
            held = bucket_of >= 0
            np.add.at(row, bucket_of[held], cells[held])
        return sums

    def weigh(self, cells: Cells) -> Cells:
        return np.asarray((cells * np.arange(cells.shape[1]).astype(object)[:, None]).sum(axis=1))

    def join(self, cells: Cells, shift: int) -> Cells:
        return np.asarray(
            (cells * (2 ** (shift * np.arange(cells.shape[1]).astype(object)))[:, None]).sum(axis=1)
        )

    def obfuscators(self, count: int) -> Cells:
        return self.wrap([0] * count)

    def decrypt(self, cells: Cells) -> list[int]:
        return [int(v) for v in cells.ravel().tolist()]


_ADDER = Adder()


def _width(layout: Layout) -> int:
    packed = layout.slots * layout.width
    return word_count(1 + (packed if layout.slots > 1 else layout.bound.bit_length()))
