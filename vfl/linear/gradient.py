"""A gradient X^T r of columns at one party and residuals at another, of which each sees only its own.

Takes part: the owner of a key, who has residuals r, and an owner of columns X. The first sends [[r]], the
second returns [[X^T r + mask]], the first decrypts that and tells its lowest bits, the second takes the mask
off.

Who learns what: the owner of the columns learns X^T r, exactly, and a power of two above the root mean
square of r; of r nothing else. The owner of the key learns how many columns there are, and of X^T r nothing:
the mask is uniform over all plaintexts (`protocols.hazmat.paillier.veils`), whatever it encrypted and
whatever key it made, since a key comes with a proof that it has no room for anything else.

Whatever an owner of columns returns, it is told `WINDOW` bits of each number. One that follows the protocol
has sums of so many bits (`vfl.linear.whole`), and so learns them exactly: the gradient does not depend on
keys or masks, nor on there being any. One that does not can have any other so many bits, such as labels of
so many rows. How many numbers it returns is its own to say, up to a tenth of the rows that count.

Ciphertexts of residuals are the same for all receivers: together these learn nothing that one of them does
not know. Assumes Paillier (`protocols.hazmat.paillier`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue

from protocols.arrays import Array
from protocols.costs import Cost
from protocols.errors import ProtocolError
from protocols.hazmat.paillier import Encoded, EncryptedArray
from protocols.hazmat.paillier.array import Key
from protocols.hazmat.paillier.layout import Layout, plan
from protocols.hazmat.paillier.veils import SPARE, unveil, veil, window
from protocols.party import Coordinator, Party
from protocols.wire.message import Message, Spec
from vfl.linear.columns import check_rows
from vfl.linear.whole import CHECK, FARTHEST, WINDOW, Factors, Rounded, detail, ranges

CHUNK = 2048  # rows that are encrypted together, while the receiver adds up those before
Words = Annotated[Array, Spec("uint64", ("m", "w"))]


class SealedResiduals(
    Message,
    reveals="residuals, or how they changed since the last step, under the sender's key, which the receiver "
    "cannot read; a power of two above their root mean square",
):
    """Of some rows of a batch, in order."""

    words: Words
    header: dict[str, JsonValue]
    exponent: Annotated[int, Field(ge=-FARTHEST, le=FARTHEST + 1, strict=True)]


class MaskedGradient(
    Message,
    reveals="how many columns it has; their gradient under the receiver's key and below a mask that hides it",
):
    """What the receiver is to decrypt."""

    words: Words
    header: dict[str, JsonValue]


class OpenedGradient(
    Message,
    reveals="to the one who masked them, 34 bits of each number that it asks to have decrypted: the gradient "
    "of its own columns, if it follows the protocol",
):
    """The lowest bits of the decrypted sums with their masks."""

    words: Annotated[Array, Spec("uint64", ("d", "k"))]


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

    def __init__(self, key: Key, residuals: Rounded, counted: int) -> None:
        """residuals: (rows, outputs). counted: how many rows have a weight above 0."""
        self._key, self._residuals, self._counted = key, residuals, counted

    @property
    def rows(self) -> int:
        """Of the batch."""
        return len(self._residuals.ints)

    def seal(self, part: slice) -> SealedResiduals:
        """Some of the rows."""
        r = self._residuals
        value, factor = ranges(self.rows)
        sealed = self._key.encrypt(r.ints[part], value, terms=_terms(self.rows), times=factor, spare=SPARE)
        words, header = sealed.dump()
        return SealedResiduals(words=words, header=header, exponent=r.exponent)

    def open(self, masked: MaskedGradient) -> OpenedGradient:
        """What came back, decrypted: its lowest bits.

        Raises ProtocolError if it is not of this gradient, DataError if it is of so many columns that the
        residuals could be found out from it: who owns them does not leave that to who asks.
        """
        found = self._key.load(masked.words, _header(masked.header))
        outputs = self._residuals.ints.shape[1]
        if len(found.shape) != 2 or found.shape[1] != outputs:
            raise ProtocolError(f"{masked.kind} should be (columns, {outputs}), got {list(found.shape)}")
        own = _layout(self._key, found.shape, self.rows)
        if (found.layout.slots, found.layout.width) != (own.slots, own.width):
            raise ProtocolError(f"{masked.kind} should be packed as the residuals were")
        check_rows(self._counted, found.shape[0])
        return OpenedGradient(words=window(self._key, found, WINDOW).astype(np.uint64))

    async def serve(self, at: Coordinator, peers: Sequence[str]) -> None:
        """Let each of `peers` have the gradient of its own columns.

        PolicyError if a policy asks for more rows behind it than have a weight above 0.
        """
        at.guard.group(self._counted)
        for part in chunks(self.rows):
            cost = priced(self._key, paillier_encrypt=(part.stop - part.start))
            await at.broadcast(await at.compute(self.seal, part, cost=cost), to=peers)
        for peer in peers:
            with self._key.filling(self.rows):
                masked = await at.recv(peer, MaskedGradient)
            cost = priced(self._key, paillier_decrypt=len(masked.words))
            await at.send(peer, await at.compute(self.open, masked, cost=cost))


class Sums:
    """The other end: X^T r of the columns in `x`."""

    def __init__(self, key: Key, x: Factors, outputs: int) -> None:
        self._key, self._x, self._outputs = key, x, outputs
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
        rows, columns = self._x.shape
        for part in chunks(rows):
            with self._key.filling(columns * self._outputs):
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
        declared = _layout(self._key, expected, self._x.shape[0])
        if loaded.layout != declared or self._exponent not in (None, sealed.exponent):
            raise ProtocolError(
                f"{sealed.kind} should be whole numbers up to {declared.bound}, times one power of two for "
                "all rows of a batch"
            )
        self._exponent = sealed.exponent
        _, factor = ranges(self._x.shape[0])
        product = loaded.matmul(Encoded(self._x.ints[part], factor))
        self._sum = product if self._sum is None else self._sum + product

    def masked(self) -> MaskedGradient:
        """The sums below new masks."""
        assert self._sum is not None
        hidden, self._masks = veil(self._sum)
        words, header = hidden.dump()
        return MaskedGradient(words=words, header=header)

    def opened(self, message: OpenedGradient) -> Array:
        """The sums. ProtocolError for what cannot be them."""
        assert self._sum is not None
        expected = (self._x.shape[1], self._outputs)
        if message.words.shape != expected:
            raise ProtocolError(f"{message.kind} should be {list(expected)}, got {list(message.words.shape)}")
        ints = unveil(message.words, self._masks, self._sum.layout, WINDOW)
        if np.abs(ints).max(initial=0) > 2 ** (WINDOW - 1 - CHECK):
            raise ProtocolError(f"{message.kind} holds sums that such residuals cannot have")
        return np.ldexp(ints / self._x.scale[:, None], self.exponent - detail(self._x.shape[0]))

    def adding(self, part: slice) -> Cost:
        """What taking in these rows costs."""
        entries = (part.stop - part.start) * self._x.shape[1] * self._outputs
        return priced(self._key, paillier_product=4 * entries)  # four digits an entry, about

    @property
    def refreshing(self) -> Cost:
        """What it costs that the sums leave."""
        return priced(self._key, paillier_refresh=self._x.shape[1] * self._outputs)


def _layout(key: Key, shape: tuple[int, ...], rows: int) -> Layout:
    """As `Sealer.seal` packs part of so many rows."""
    value, factor = ranges(rows)
    return plan(shape, value, key.bits - 2 - SPARE, _terms(rows), factor)


def _terms(rows: int) -> int:
    """Rows of a sum: enough that a slot has room for a window, however few there are."""
    return max(rows, 4 << CHECK)


def _header(header: Mapping[str, JsonValue]) -> dict[str, Any]:
    return dict(header)
