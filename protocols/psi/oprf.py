"""The pseudorandom functions of KKRT, one for each bin of a table: what each side computes of them.

No party: plain functions of arrays for the roles of `protocols.psi.kkrt`, which says what is what and who
learns it. Both sides know `Own`'s keys; the receiver has both streams of columns, the sender one of each
pair.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from protocols.errors import ProtocolError
from protocols.hazmat.blake2s import Digests, keyed_digests, row_digests
from protocols.hazmat.cuckoo import Bins, Table, bins_of, fill, third_of
from protocols.hazmat.equal_rows import find
from protocols.hazmat.oblivious import Bytes, Columns, Words, as_rows
from protocols.psi.ecdh import Met, in_order
from protocols.psi.ids import CanonicalIds, Rows

CODE = 448  # bits of an id's code, and seeds
WORDS = CODE // 64
TRIES = 16  # of hashes for the table


@dataclass(frozen=True, eq=False)
class Own:
    """This party's ids, and what both derive for this run. Its repr shows none of it."""

    ids: CanonicalIds = field(repr=False)
    id_key: bytes = field(repr=False)
    code_key: bytes = field(repr=False)
    bin_key: bytes = field(repr=False)
    width: int  # bytes of a value that are compared

    @classmethod
    def of(cls, ids: CanonicalIds, key: bytes, width: int) -> Own:
        """From the key that both sides agreed on for this run."""
        return cls(ids, _key(key, b"ids", 32), _key(key, b"codes", 64), _key(key, b"bins", 16), width)

    def digests(self, fast: ModuleType | None) -> Digests:
        """128 bits of each id, under a key of this run: uint32 (n, 4)."""
        return keyed_digests(self.id_key, b"vfl kkrt", self.ids.values, fast)

    def bins(self, digests: Digests, third: int, tried: int) -> Bins:
        """The three bins of each id, by the hash after `tried` others."""
        key = _key(self.bin_key, tried.to_bytes(1, "little"), 16)
        return bins_of(np.frombuffer(_aes(key, digests), "<u4").reshape(-1, 4)[:, :3], third)

    def codes(self, digests: Digests) -> Words:
        """C of each id: uint64 (n, 7); AES of the digest under four keys, as in the paper's section 5.1."""
        blocks = np.empty((len(digests), 4, 2), np.uint64)
        for i in range(4):
            key = self.code_key[16 * i : 16 * (i + 1)]
            blocks[:, i] = np.frombuffer(_aes(key, digests), np.uint64).reshape(-1, 2)
        return blocks.reshape(-1, 8)[:, :WORDS]


def _key(key: bytes, use: bytes, size: int) -> bytes:
    return hashlib.blake2b(use, key=key, digest_size=size, person=b"vfl psi kkrt 1").digest()


def _aes(key: bytes, blocks: Digests) -> bytes:
    return Cipher(AES(key), ECB()).encryptor().update(blocks.tobytes())


def fill_table(own: Own, fast: ModuleType | None) -> tuple[Digests, Table, int]:
    """(digests, table, hashes that did not serve) of the receiver's ids."""
    digests, third = own.digests(fast), third_of(len(own.ids))
    for tried in range(TRIES):
        table = fill(own.bins(digests, third, tried), third, fast)
        if table is not None:
            return digests, table, tried
    raise ProtocolError(f"no table of {len(own.ids)} ids could be filled by {TRIES} hashes; try again")


def masked(
    own: Own,
    digests: Digests,
    part: Table,
    at: int,
    columns: tuple[Columns, Columns],
    mine: Bytes,
    fast: ModuleType | None,
) -> Words:
    """The receiver's masked codes of a part of its table, from bin `at` on: uint64 (b, 7). The values of the
    ids in it go to `mine`, uint8 (n, w)."""
    full = part >= 0
    items = part[full]
    codes = np.empty((len(part), WORDS), np.uint64)
    codes[full] = own.codes(digests[items])
    dummies = secrets.token_bytes(8 * WORDS * (len(part) - len(items)))
    codes[~full] = np.frombuffer(dummies, np.uint64).reshape(-1, WORDS)
    words = -(-len(part) // 64)
    t, other = columns[0].take(words), columns[1].take(words)
    other ^= t
    codes ^= as_rows(other, fast)[: len(part)]
    rows, bins = as_rows(t, fast)[: len(part)][full], np.flatnonzero(full).astype(np.uint64) + np.uint64(at)
    mine[items] = _cut(row_digests(b"vfl oprf", rows, bins, fast), mine.shape[1])
    return codes


def unmask(columns: Columns, rows: Words, s: Words, q: Words, fast: ModuleType | None) -> None:
    """Into q, uint64 (n, 7): the sender's next rows of Q."""
    q[:] = as_rows(columns.take(-(-len(rows) // 64)), fast)[: len(rows)]
    q ^= rows & s


def values_of(own: Own, digests: Digests, bins: Bins, q: Words, s: Words, fast: ModuleType | None) -> Bytes:
    """The sender's values of some ids in each of their bins: uint8 (3, n, w)."""
    chosen = own.codes(digests) & s
    values = np.empty((3, len(digests), own.width), np.uint8)
    for third in range(3):
        at = bins[:, third]
        values[third] = _cut(row_digests(b"vfl oprf", q[at] ^ chosen, at.astype(np.uint64), fast), own.width)
    return values


def _cut(digests: Digests, width: int) -> Bytes:
    return np.ascontiguousarray(digests).view(np.uint8)[:, :width]


def match(own: Own, table: Table, mine: Bytes, theirs: Bytes, fast: ModuleType | None) -> tuple[Met, Rows]:
    """What the receiver learns, and at which places of the sender's order."""
    items, places = [], []
    for part, values in zip(np.split(table, 3), theirs, strict=True):
        here = part[part >= 0]
        found = find(mine[here], values, fast)
        places.append(np.flatnonzero(found >= 0))
        items.append(here[found[places[-1]]].astype(np.int64))
    shared, at = np.concatenate(items), np.concatenate(places)
    if len(shared) > min(np.count_nonzero(np.bincount(which)) for which in (shared, at)):
        # The sender hears this too, and may not be one who is to learn how many match.
        raise ValueError("an id or a value matches twice; ids are distinct")
    return Met(in_order(own.ids, shared), len(shared)), at
