"""The statistics of rows on their way out, and sums of them on their way back: sealed or in the clear.

Takes part: the label party, which seals and opens; a feature party, which sums up what it cannot read. One
ciphertext holds all statistics of a row; a feature party multiplies those of each bin, joins as many bins as
there is room for into each plaintext, and re-randomises what leaves. With `key=None` the same integers travel
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from protocols.arrays import Array
from protocols.costs import Cost
from protocols.errors import DataError, ProtocolError
from protocols.hazmat.paillier import EncryptedArray, Fixed, concatenated
from protocols.hazmat.paillier.array import Key
from protocols.hazmat.paillier.layout import plan
from protocols.trees.sums import histogram, starts
from vfl.boosting.messages import ClearGradients, ClearSums, SealedGradients, SealedSums

CHUNK = 4096  # rows of one message: the next are encrypted while these are on their way
Statistics = EncryptedArray | Array  # (rows, statistics)


def seal(values: Array, bits: int, terms: int, key: Key | None) -> SealedGradients | ClearGradients:
    """Some rows' statistics (n, s), of at most 2**bits; `terms` rows in all can be summed up."""
    if key is None:
        return ClearGradients(values=values.astype(np.int32))
    words, head = key.encrypt(values, Fixed(limit=2**bits), terms=terms).dump()
    return SealedGradients(words=words, head=head)


def take(
    message: SealedGradients | ClearGradients, key: Key | None, shape: tuple[int, int], bits: int, terms: int
) -> Statistics:
    """What `seal` gave. ProtocolError if it is not of this shape (rows, statistics), or of another key, or
    was not sealed with these bits and terms."""
    if isinstance(message, ClearGradients):
        values = message.values.astype(np.int64)
        found: Statistics = values
        alike = bool((np.abs(values) <= 2**bits).all())
    else:
        assert key is not None
        found = sealed = key.load(message.words, message.head)
        # Of any other layout sums could be refused for want of room, which would look like a fault of ours.
        alike = sealed.layout == plan(shape, Fixed(2**bits), key.bits - 2, terms, None)
    if found.shape != shape:
        raise ProtocolError(f"{message.kind}: expected numbers of {list(shape)}, got {list(found.shape)}")
    if not alike:
        raise ProtocolError(f"{message.kind}: numbers that are not as large, or packed, as agreed")
    return found


def joined(parts: Sequence[Statistics]) -> Statistics:
    """All chunks in one."""
    sealed = [part for part in parts if isinstance(part, EncryptedArray)]
    if sealed:
        return concatenated(sealed)
    return np.concatenate([part for part in parts if not isinstance(part, EncryptedArray)])


def sum_up(
    statistics: Statistics, binned: Array, counts: Array, nodes: Sequence[Array]
) -> SealedSums | ClearSums:
    """The flat histograms of `nodes`, each the positions of its rows. binned: (columns, rows)."""
    if not isinstance(statistics, EncryptedArray):
        flat = [histogram(binned[:, rows], statistics[rows], counts) for rows in nodes]
        return ClearSums(values=np.concatenate(flat))
    most = int(counts.max())
    column = np.repeat(np.arange(len(counts)), counts + 1)
    bin_ = np.arange(len(column)) - np.repeat(starts(counts)[:-1], counts + 1)
    found = [statistics[rows].bucket_sum(binned[:, rows].T, most + 1)[column, bin_] for rows in nodes]
    sums = concatenated(found)
    words, head = (sums if _blank(sums) else sums.packed()).dump()
    return SealedSums(words=words, head=head)


def open_sums(
    message: SealedSums | ClearSums, key: Key | None, shape: tuple[int, int, int], most: int, sender: str
) -> Array:
    """(nodes, bins, statistics) int64. ProtocolError where the message is not of this shape, of sums that may
    be beyond `most`, or not what it declares."""
    if isinstance(message, ClearSums):
        size, large = message.values.size, bool(((message.values < -most) | (message.values > most)).any())
    else:
        assert key is not None
        sealed = key.load(message.words, message.head)
        size, large = prod(sealed.shape), sealed.layout.bits != 0 or sealed.layout.bound > most
    if size != prod(shape):
        raise ProtocolError(
            f"{message.kind} from {sender}: expected sums of {shape[0]} nodes, {shape[1]} bins and "
            f"{shape[2]} statistics, got {size} numbers"
        )
    if large:
        raise ProtocolError(f"{message.kind} from {sender}: sums that are larger than those of all rows")
    if isinstance(message, ClearSums):
        return message.values.reshape(shape)
    assert key is not None
    try:
        return key.decrypt(sealed).reshape(shape).astype(np.int64)
    except DataError as error:
        raise ProtocolError(f"{message.kind} from {sender}: {error}") from None


def sealing_cost(rows: int, statistics: int, sealed: bool) -> Cost:
    """Of `seal`."""
    return {"paillier_encrypt": rows} if sealed else float(rows * statistics)


def summing_cost(rows: int, columns: int, statistics: int, bins: int, sealed: bool) -> Cost:
    """Of `sum_up`, for so many rows and bins of all nodes together: a product a row and two columns, and
    squarings that shift each bin to its place."""
    if not sealed:
        return 2.0 * rows * columns * statistics
    products = rows * -(-columns // 2) + 35 * statistics * bins
    return {"paillier_product": products, "paillier_refresh": -(-bins * statistics // 60)}


def opening_cost(bins: int, statistics: int, sealed: bool) -> Cost:
    """Of `open_sums`."""
    return {"paillier_decrypt": -(-bins * statistics // 60)} if sealed else float(bins * statistics)


def _blank(sums: EncryptedArray) -> bool:
    """Whether a bin's statistics take several plaintexts, which are not full: those are not joined."""
    return bool(sums.shape[-1] % sums.layout.slots)
