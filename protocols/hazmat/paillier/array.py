"""EncryptedArray: numpy's arithmetic, as far as an additive scheme allows, on numbers that stay unread.

Every result carries a bound on its integers that follows from declared limits alone, and is refused, naming
the bits that are missing, if a slot has no room for it. Arrays of different keys never meet.

An array is `fresh` while its ciphertexts are unlike any that somebody has seen: just encrypted or
re-randomised, and not sent. Arithmetic and sending make it stale, and `dump` re-randomises what is stale; so
whoever dumps twice sends different bytes, and whoever replays sends the bytes of one dump.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from math import prod
from typing import Any, Protocol

import numpy as np

from protocols.errors import ConfigError
from protocols.hazmat.paillier.engine import Cells, Engine
from protocols.hazmat.paillier.fixed import Array, Encoded, Fixed
from protocols.hazmat.paillier.layout import Header, Layout, header, product, roomy, stretched
from protocols.hazmat.paillier.products import bucket_sums, matmul
from protocols.hazmat.paillier.words import Words


class Key(Protocol):
    """What encrypts and, with its private part, decrypts. Made by a `Paillier` or a `Plain`."""

    @property
    def is_plain(self) -> bool:
        """Whether it only pretends to."""

    @property
    def bits(self) -> int:
        """Of the modulus; a plaintext has room for two fewer."""

    @property
    def modulus(self) -> int:
        """Plaintexts are numbers modulo this."""

    @property
    def can_decrypt(self) -> bool:
        """Whether the private part is here."""

    @property
    def engine(self) -> Engine:
        """Who does the arithmetic."""

    @property
    def fingerprint(self) -> str:
        """Equal for the public and the private side of one key, and for no other key."""

    def obfuscators(self, count: int) -> Cells:
        """Ciphertexts of 0 that nobody has seen."""

    def words(self, cells: Cells, layout: Layout) -> Words:
        """Canonical numbers, as they are sent."""

    def public(self) -> Key:
        """The same key without its private part."""

    def to_bytes(self) -> bytes:
        """The public part, for `key_from_bytes` at a peer."""

    def encrypt(
        self, x: Any, fixed: Fixed, *, terms: int | None = None, times: Fixed | None = None, spare: int = 0
    ) -> EncryptedArray:
        """Numbers of any shape, in the range that `fixed` declares; packed if `terms` says for what sums."""

    def decrypt(self, array: EncryptedArray) -> Array:
        """The numbers."""

    def load(self, words: Words, head: Header) -> EncryptedArray:
        """What a peer's `dump` gave."""

    def filling(self, limit: int = 4096) -> AbstractContextManager[None]:
        """Prepare to encrypt and to send, in the background, for as long as the block lasts."""


class EncryptedArray:
    """Ciphertexts of one key in the shape of an array. Immutable but for its mark of freshness."""

    __array_ufunc__ = None  # numpy leaves `X.T @ array` and `3 * array` to the methods here
    __slots__ = ("_cells", "_fresh", "key", "layout")

    def __init__(self, key: Key, cells: Cells, layout: Layout, *, fresh: bool = False) -> None:
        self.key, self.layout, self._fresh = key, layout, fresh
        self._cells = cells.reshape(*layout.grid, cells.shape[-1])
        self._cells.flags.writeable = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers, whether packed or not."""
        return self.layout.shape

    @property
    def fresh(self) -> bool:
        """Whether nobody could link these ciphertexts to others."""
        return self._fresh

    @property
    def is_plain(self) -> bool:
        """Whether nothing is encrypted here at all."""
        return self.key.is_plain

    @property
    def rows(self) -> Cells:
        """One ciphertext a row, in the engine's form."""
        return self._cells.reshape(-1, self._cells.shape[-1])

    def rows_for(self, key: Key) -> Cells:
        """The rows in the form of the engine of `key`: this key, or its other half with another backend."""
        if key.engine.name == self.key.engine.name:
            return self.rows
        return key.engine.load(self.key.words(self.rows, self.layout))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        a = self.layout
        kind = "plain" if self.is_plain else "encrypted"
        return f"<{kind} {list(a.shape)}, {a.bits} fraction bits, {a.slots} of {a.width} bits a plaintext>"

    def __getitem__(self, index: Any) -> EncryptedArray:
        """Rows, slices, masks and integer arrays of the axes that are not packed, as in numpy."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is None or part is Ellipsis for part in parts):
            raise ConfigError("an encrypted array is indexed by numbers, slices, masks and arrays of numbers")
        lead = np.broadcast_to(np.int8(0), self.layout.lead)
        if len(parts) > lead.ndim:
            raise ConfigError(
                f"{len(parts)} indices for the {lead.ndim} axes of {self!r} that are not packed; encrypt "
                "without terms= to reach single values"
            )
        shape = (*lead[index].shape, *self.shape[lead.ndim :])
        return self._with(self._cells[index], shape=shape)

    def __neg__(self) -> EncryptedArray:
        return self._with(self.key.engine.invert(self.rows))

    def __add__(self, other: object) -> EncryptedArray:
        """Of an array like this one, or of plain numbers: an `Encoded`, or any in this array's own range."""
        term = self._term(other)
        if term is None:
            return NotImplemented
        a, b = self._aligned(term)
        layout = roomy(a.layout, "+", bound=a.layout.bound + b.layout.bound)
        return EncryptedArray(self.key, self.key.engine.multiply(a.rows, b.rows), layout)

    __radd__ = __add__

    def __sub__(self, other: object) -> EncryptedArray:
        term = self._term(other)
        return NotImplemented if term is None else self + -term

    def __rsub__(self, other: object) -> EncryptedArray:
        return -self + other

    def __mul__(self, other: object) -> EncryptedArray:
        """Times a public whole number, an `Encoded` array, or whole numbers of 32 bits and less.

        The bound of the product shows a number's magnitude, and of an array only its declared limit.
        """
        if isinstance(other, int | np.integer) and not isinstance(other, bool):
            factor = int(other)
            layout = roomy(self.layout, "*", bound=self.layout.bound * (abs(factor) or 1))
            powers = self.key.engine.power(self.rows, [factor] * self.layout.count)
            return EncryptedArray(self.key, powers, layout)
        if not isinstance(other, Encoded | np.ndarray):
            return NotImplemented
        factors = _encoded(other)
        grid, slots = self.layout.grid, self.layout.slots
        if slots > 1 and factors.ints.ndim and factors.shape[-1] != 1:
            raise ConfigError(
                f"an array of shape {list(factors.shape)} times {self!r}: values in one plaintext share "
                "their factor, so its last axis should be 1"
            )
        ints = stretched(factors.ints, grid).ravel().tolist()
        layout = product(self.layout, factors, "*", 1)
        return EncryptedArray(self.key, self.key.engine.power(self.rows, ints), layout)

    __rmul__ = __mul__

    def __rmatmul__(self, left: object) -> EncryptedArray:
        if not isinstance(left, Encoded | np.ndarray):
            return NotImplemented
        return self.matmul(_encoded(left).T)

    def matmul(self, X: Encoded | Array) -> EncryptedArray:
        """X^T [[self]]: shape (d, ...) for plain X (rows, d) and this array of (rows, ...)."""
        factors = _encoded(X)
        rows = self._length()
        if len(factors.shape) != 2 or factors.shape[0] != rows:
            raise ConfigError(
                f"X^T [[g]] needs X of shape [{rows}, columns] for {self!r}, got {list(factors.shape)}"
            )
        shape = (factors.shape[1], *self.shape[1:])
        layout = replace(product(self.layout, factors, "matmul", rows), shape=shape)
        return EncryptedArray(self.key, matmul(self.key.engine, self._cells, factors.ints), layout)

    def sum(self, axis: int | None = None) -> EncryptedArray:
        """Over one axis or over all of them, but for a packed one."""
        axes = len(self.layout.lead)
        if axis is None and self.layout.slots == 1:
            whole = EncryptedArray(self.key, self.rows, replace(self.layout, shape=(prod(self.shape),)))
            return whole.sum(0)
        if axis is None or not -len(self.shape) <= axis < axes or (axis := axis % len(self.shape)) >= axes:
            raise ConfigError(
                f"sum(axis={axis}) of {self!r}: those that can be summed are 0 to {axes - 1}; a packed one "
                "is summed after decrypting"
            )
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        layout = roomy(self.layout, "sum", bound=self.layout.bound * (self.shape[axis] or 1), shape=shape)
        first = np.moveaxis(self._cells, axis, 0)
        index = np.zeros((1, self.shape[axis]), np.int64)
        return EncryptedArray(self.key, bucket_sums(self.key.engine, first, index, 1), layout)

    def bucket_sum(self, index: Array, n: int) -> EncryptedArray:
        """Sums of rows by bucket: (n, ...) for an index (rows,) of buckets 0 to n - 1.

        With an index (rows, features), a histogram of each feature: (features, n, ...).
        """
        rows, buckets = self._length(), np.asarray(index)
        if buckets.dtype.kind not in "iu" or buckets.ndim not in (1, 2) or len(buckets) != rows:
            raise ConfigError(
                f"bucket_sum of {self!r} needs whole numbers of shape [{rows}] or [{rows}, features], got "
                f"{buckets.dtype} {list(buckets.shape)}"
            )
        if outside := int(np.count_nonzero((buckets < 0) | (buckets >= n))):
            raise ConfigError(f"{outside} of {buckets.size} indices are not buckets from 0 to {n - 1}")
        shape = (*buckets.shape[1:], n, *self.shape[1:])
        layout = roomy(self.layout, "bucket_sum", bound=self.layout.bound * (rows or 1), shape=shape)
        per_feature = np.atleast_2d(buckets.T).astype(np.int64)
        return EncryptedArray(self.key, bucket_sums(self.key.engine, self._cells, per_feature, n), layout)

    def packed(self) -> EncryptedArray:
        """The same numbers in one axis, (size,), as many to a plaintext as it has room for.

        Of an array that was encrypted with terms=, which says how much room each takes; no other shares its
        plaintexts. What took many ciphertexts to compute takes few to send and to decrypt.
        """
        a = self.layout
        size, blank = prod(a.shape), a.slots > 1 and a.shape[-1] % a.slots
        if blank:
            raise ConfigError(
                f"{self!r} has plaintexts with blank slots, {a.shape[-1]} values in runs of {a.slots}; pack "
                "arrays whose last axis fills them"
            )
        together = max(1, min((self.key.bits - 2) // (a.width * a.slots), a.count))
        layout = replace(a, shape=(size,), slots=together * a.slots if size else 1)
        if together == 1:
            return self._with(self._cells, shape=(size,), slots=layout.slots)
        engine, rows = self.key.engine, self.rows
        room = -a.count % together
        filled = np.concatenate([rows, engine.wrap([0] * room)]) if room else rows
        joined = engine.join(filled.reshape(-1, together, rows.shape[1]), a.width * a.slots)
        return EncryptedArray(self.key, joined, layout)

    def refreshed(self) -> EncryptedArray:
        """The same numbers under new ciphertexts, which nobody can link to these but by their content."""
        new = self.key.engine.multiply(self.rows, self.key.obfuscators(self.layout.count))
        return EncryptedArray(self.key, new, self.layout, fresh=True)

    def dump(self) -> tuple[Words, Header]:
        """What leaves: uint64 (ciphertexts, words) and a header of JSON values. Never the same words twice.

        To replay, keep what was returned: it may be sent again as it is.
        """
        leaving = self if self._fresh else self.refreshed()
        self._fresh = False
        return self.key.words(leaving.rows, self.layout), header(self.layout, self.key.fingerprint)

    def _length(self) -> int:
        if not self.layout.lead:
            raise ConfigError(f"{self!r} has no axis of rows that is not packed")
        return self.shape[0]

    def _with(self, cells: Cells, **changes: Any) -> EncryptedArray:
        return EncryptedArray(self.key, cells.reshape(-1, cells.shape[-1]), replace(self.layout, **changes))

    def _term(self, other: object) -> EncryptedArray | None:
        """What is to be added, as an array like this one; None for what cannot be."""
        if isinstance(other, EncryptedArray):
            return other
        if isinstance(other, int | float | np.ndarray | np.generic):
            # Declared as what this array holds: the bound of the sum may not tell the numbers.
            if self.layout.bits < 0:
                raise ConfigError(f"plain numbers cannot be added to {self!r}, which has no places for them")
            limit = min(self.layout.bound, 2**990) / 2**self.layout.bits
            other = Fixed(limit, self.layout.bits).encode(other)
        return self._wrapped(other) if isinstance(other, Encoded) else None

    def _wrapped(self, plain: Encoded) -> EncryptedArray:
        """Plain numbers in the form of this array, hidden by nothing but what they are added to."""
        bits, fixed = self.layout.bits, plain.fixed
        if fixed.bits > bits:
            raise ConfigError(
                f"numbers with {fixed.bits} fraction bits cannot be added to {self!r}; use at most {bits}"
            )
        scale = 2 ** (bits - fixed.bits)
        layout = roomy(self.layout, "+", bound=fixed.bound * scale)
        ints = plain.ints if scale == 1 else plain.ints.astype(object) * scale
        return EncryptedArray(self.key, self.key.engine.wrap(layout.pack(ints)), layout)

    def _aligned(self, other: EncryptedArray) -> tuple[EncryptedArray, EncryptedArray]:
        """Both with the larger number of fraction bits. ConfigError if they cannot be added at all."""
        if other.key.fingerprint != self.key.fingerprint:
            raise ConfigError(f"{self!r} and {other!r} are encrypted under different keys")
        a, b = self.layout, other.layout
        if (a.shape, a.slots, a.slots > 1 and a.width) != (b.shape, b.slots, b.slots > 1 and b.width):
            raise ConfigError(f"{self!r} and {other!r} differ in shape or packing; encrypt them alike")
        other = EncryptedArray(self.key, other.rows_for(self.key), b)
        bits = max(a.bits, b.bits)
        return self.rescaled(bits), other.rescaled(bits)

    def rescaled(self, bits: int) -> EncryptedArray:
        """The same numbers with more fraction bits. ConfigError for fewer, which would need decrypting."""
        more = bits - self.layout.bits
        if more < 0:
            raise ConfigError(f"{self!r} cannot be brought to {bits} fraction bits without decrypting it")
        return self if not more else _finer(self * 2**more, bits)


def concatenated(arrays: Sequence[EncryptedArray]) -> EncryptedArray:
    """One after another along the first axis. ConfigError unless they are alike but for its length."""
    first, *others = arrays
    for other in others:
        a, b = first.layout, other.layout
        alike = replace(b, shape=(a.shape[:1] + b.shape[1:]), bound=a.bound) == a
        if not alike or not a.lead or first.key.fingerprint != other.key.fingerprint:
            raise ConfigError(f"{first!r} and {other!r} differ in packing or key; encrypt them alike")
    layout = replace(
        first.layout,
        shape=(sum(len(a) for a in arrays), *first.shape[1:]),
        bound=max(a.layout.bound for a in arrays),
    )
    cells = np.concatenate([a.rows_for(first.key) for a in arrays])
    return EncryptedArray(first.key, cells, layout)


def _finer(array: EncryptedArray, bits: int) -> EncryptedArray:
    return EncryptedArray(array.key, array.rows, replace(array.layout, bits=bits))


def _encoded(plain: Encoded | Array) -> Encoded:
    if isinstance(plain, Encoded):
        return plain
    if plain.dtype.kind in "bui" and plain.dtype.itemsize <= 4:
        largest = 1 if plain.dtype.kind == "b" else max(abs(int(e)) for e in _ends(plain.dtype))
        return Fixed(largest).encode(plain)
    raise ConfigError(
        f"an array of {plain.dtype} has no declared range, and its actual one would show in the product's "
        "bound; encode it first, as in Fixed(limit=8.0, bits=16).encode(X)"
    )


def _ends(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
