"""A gradient X^T r of columns at one party and residuals at another, of which each sees only its own.

Takes part: the owner of a key, who has residuals r, and an owner of columns X. The first sends [[r]], the
second returns [[X^T r + mask]], the first decrypts that and sends it back, the second takes the mask off.

Who learns what: the owner of the columns learns X^T r, exactly, and a power of two above the largest |r| so
far; of r nothing else. The owner of the key learns how many columns there are; X^T r is hidden from it by a
mask that is uniform over a range 2^64 times what the sum can be (statistically: within 2^-64 of nothing).

Residuals are whole multiples of 2^-40 of that power of two, columns of 2^-24 of their largest value, and the
sums are exact: so the gradient does not depend on keys or masks, nor on there being any. Ciphertexts of
residuals are the same for all receivers: together these learn nothing that one of them does not know.

Assumes Paillier (`protocols.hazmat.paillier`) and parties that follow the protocol.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue

from protocols.arrays import Array
from protocols.costs import Cost
from protocols.errors import DataError, ProtocolError
from protocols.hazmat.paillier import Encoded, EncryptedArray, Fixed
from protocols.hazmat.paillier.array import Key
from protocols.hazmat.paillier.words import to_ints, to_words, word_count
from protocols.party import Coordinator, Party
from protocols.wire.message import Message, Spec
from vfl.linear.block import BITS, Columns, check_rows

RESIDUAL = 40  # bits
LARGEST = 400  # bits of residuals, of whose gradients a float holds the squares
HIDING = 64  # bits of a mask beyond those of what it hides
CHUNK = 2048  # rows that are encrypted together, while the receiver adds up those before
_FACTOR, _VALUE = Fixed(2.0**BITS), Fixed(2.0**RESIDUAL)
Words = Annotated[Array, Spec("uint64", ("m", "w"))]


class SealedResiduals(
    Message,
    reveals="residuals under the sender's key, which the receiver cannot read; a power of two above the "
    "largest so far",
):
    """Of some rows of a batch, in order."""

    words: Words
    header: dict[str, JsonValue]
    exponent: Annotated[int, Field(ge=0, le=LARGEST, strict=True)]


class MaskedGradient(
    Message,
    reveals="how many columns it has; their gradient under the receiver's key and below a mask that hides it",
):
    """What the receiver is to decrypt."""

    words: Words
    header: dict[str, JsonValue]


class OpenedGradient(Message, reveals="to the one who masked it, the gradient of the receiver's own columns"):
    """The decrypted sums with their masks, modulo 2^(64 w)."""

    words: Annotated[Array, Spec("uint64", ("d", "k", "w"))]


class Scale:
    """The power of two that residuals are multiples of; it only grows, so that it tells little."""

    def __init__(self, exponent: int = 0) -> None:
        self.exponent = exponent

    def round(self, residuals: Array) -> Array:
        """`residuals` as the whole numbers that leave, float64. DataError for infinite or too large ones."""
        largest = float(np.abs(residuals).max(initial=0.0))
        if not largest < 2.0**LARGEST:  # NaN too
            raise DataError(
                "training diverged: residuals are not finite, or too large; lower the learning rate, raise "
                "l2, or scale counts down"
            )
        self.exponent = max(self.exponent, int(np.frexp(largest)[1]))
        return np.rint(np.ldexp(residuals, RESIDUAL - self.exponent))

    def value(self, ints: Array) -> Array:
        """What they stand for."""
        return np.ldexp(ints, self.exponent - RESIDUAL)


def chunks(rows: int) -> Iterator[slice]:
    """Even parts of a batch."""
    count = max(1, -(-rows // CHUNK))
    edges = [rows * k // count for k in range(count + 1)]
    yield from (slice(a, b) for a, b in pairwise(edges))


def priced(key: Key, **operations: int) -> Cost:
    """A cost: of a plain key none that counts beside the rest."""
    return float(sum(operations.values())) if key.is_plain else operations


class Sealer:
    """The key's owner's end of one gradient: of all receivers at once, if there are several."""

    def __init__(self, key: Key, ints: Array, exponent: int, counted: int) -> None:
        """ints: (rows, outputs) float64 as of `Scale.round`. counted: how many rows have a weight above 0."""
        self._key, self._ints, self._exponent, self._counted = key, ints, exponent, counted
        # Room for the sum and a mask: see `Sums.masked`.
        self._terms = max(len(ints), 1) << (HIDING + 2)

    def seal(self, part: slice) -> SealedResiduals:
        """Some of the rows."""
        sealed = self._key.encrypt(self._ints[part], _VALUE, terms=self._terms, times=_FACTOR)
        words, header = sealed.dump()
        return SealedResiduals(words=words, header=header, exponent=self._exponent)

    def open(self, masked: MaskedGradient) -> OpenedGradient:
        """What came back, decrypted.

        Raises ProtocolError if it is not of this gradient, DataError if it is of so many columns that the
        residuals could be found out from it: who owns them does not leave that to who asks.
        """
        found = self._key.load(masked.words, _header(masked.header))
        rows, outputs = self._ints.shape
        if len(found.shape) != 2 or found.shape[1] != outputs:
            raise ProtocolError(f"{masked.kind} should be (columns, {outputs}), got {list(found.shape)}")
        check_rows(self._counted, found.shape[0])
        width = _width(rows)
        plain = self._key.decrypt(found).ravel().tolist()
        words = to_words([int(value) % 2 ** (64 * width) for value in plain], width)
        return OpenedGradient(words=words.reshape(*found.shape, width))

    async def serve(self, at: Coordinator, peers: Sequence[str]) -> None:
        """Let each of `peers` have the gradient of its own columns."""
        rows = len(self._ints)
        for part in chunks(rows):
            cost = priced(self._key, paillier_encrypt=(part.stop - part.start))
            await at.broadcast(await at.compute(self.seal, part, cost=cost), to=peers)
        for peer in peers:
            with self._key.filling(rows):
                masked = await at.recv(peer, MaskedGradient)
            cost = priced(self._key, paillier_decrypt=len(masked.words))
            await at.send(peer, await at.compute(self.open, masked, cost=cost))


class Sums:
    """The other end: X^T r of `x`'s `rows`, which are positions or a slice."""

    def __init__(self, key: Key, x: Columns, rows: Array | slice, outputs: int) -> None:
        self._key, self._limits = key, x.limits
        self._ints, self._outputs = x.ints[rows], outputs
        self._sum: EncryptedArray | None = None
        self._masks: list[int] = []
        self._exponent: int | None = None

    @property
    def exponent(self) -> int:
        """Of the power of two that the residuals' owner has told."""
        assert self._exponent is not None
        return self._exponent

    async def ask(self, at: Party, owner: str) -> Array:
        """X^T r, (d, outputs) float64, of the residuals that `owner` has."""
        for part in chunks(len(self._ints)):
            with self._key.filling(self._ints.shape[1] * self._outputs):
                sealed = await at.recv(owner, SealedResiduals)
            await at.compute(self.add, sealed, part, cost=self.adding(part))
        await at.send(owner, await at.compute(self.masked, cost=self.refreshing))
        return self.opened(await at.recv(owner, OpenedGradient))

    def add(self, sealed: SealedResiduals, part: slice) -> None:
        """Take in some of the rows. ProtocolError if they are others."""
        loaded = self._key.load(sealed.words, _header(sealed.header))
        expected = (part.stop - part.start, self._outputs)
        if loaded.shape != expected:
            raise ProtocolError(f"{sealed.kind} should be {list(expected)}, got {list(loaded.shape)}")
        declared = (loaded.layout.bits, loaded.layout.bound)
        if declared != (_VALUE.bits, _VALUE.bound) or self._exponent not in (None, sealed.exponent):
            raise ProtocolError(
                f"{sealed.kind} should be whole numbers of at most {RESIDUAL} bits, times one power of two "
                "for all rows of a batch"
            )
        self._exponent = sealed.exponent
        product = loaded.matmul(Encoded(self._ints[part], _FACTOR))
        self._sum = product if self._sum is None else self._sum + product

    def masked(self) -> MaskedGradient:
        """The sums below new masks."""
        assert self._sum is not None
        bits = self._sum.layout.bound.bit_length() + HIDING
        self._masks = [secrets.randbits(bits) for _ in range(self._ints.shape[1] * self._outputs)]
        masks = np.array(self._masks, dtype=object).reshape(-1, self._outputs)
        hidden = self._sum + Encoded(masks, Fixed(2**bits))
        words, header = hidden.dump()
        return MaskedGradient(words=words, header=header)

    def opened(self, message: OpenedGradient) -> Array:
        """The sums. ProtocolError for what cannot be them."""
        rows, columns = self._ints.shape
        width = _width(rows)
        if message.words.shape != (columns, self._outputs, width):
            raise ProtocolError(
                f"{message.kind} should be {[columns, self._outputs, width]}, got {list(message.words.shape)}"
            )
        whole = 2 ** (64 * width)
        ints = []
        for value, mask in zip(to_ints(message.words.reshape(-1, width)), self._masks, strict=True):
            found = (int(value) - mask) % whole
            ints.append(found - whole if found >= whole // 2 else found)
        if ints and max(map(abs, ints)) > rows << (BITS + RESIDUAL):
            raise ProtocolError(f"{message.kind} holds sums that such residuals cannot have")
        sums = np.ldexp(np.array(ints, np.float64), self.exponent - RESIDUAL - BITS)
        return sums.reshape(-1, self._outputs) * self._limits[:, None]

    def adding(self, part: slice) -> Cost:
        """What taking in these rows costs."""
        entries = (part.stop - part.start) * self._ints.shape[1] * self._outputs
        return priced(self._key, paillier_product=4 * entries)  # four digits an entry, about

    @property
    def refreshing(self) -> Cost:
        """What it costs that the sums leave."""
        return priced(self._key, paillier_refresh=self._ints.shape[1] * self._outputs)


def _width(rows: int) -> int:
    """Words that hold a sum over so many rows, signed."""
    return word_count((max(rows, 1) << (BITS + RESIDUAL)).bit_length() + 2)


def _header(header: Mapping[str, JsonValue]) -> dict[str, Any]:
    return dict(header)
