"""BLAKE2s of many values at once, by hashlib or, to the same bits, by `protocols.hazmat.oprf_kernels`.

Sources: RFC 7693; salt and `person` as in the BLAKE2 paper, section 2.8.
"""

from __future__ import annotations

import hashlib
from types import ModuleType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from protocols.hazmat.oblivious import Words

Digests = NDArray[np.uint32]  # (n, 4): 128 bits each, in little-endian words

_SIZE = 16  # bytes of a digest


def keyed_digests(
    key: bytes, person: bytes, values: pa.LargeBinaryArray, kernels: ModuleType | None = None
) -> Digests:
    """The 128-bit digest of each value under a key of 16 to 32 bytes. values: no nulls."""
    if not 16 <= len(key) <= 32:
        raise ValueError(f"the key of the hash should have 16 to 32 bytes, got {len(key)}")
    keyed = hashlib.blake2s(key=key, person=person, digest_size=_SIZE)
    if kernels is not None:
        _, ends, data = values.buffers()
        offsets = np.frombuffer(ends or bytes(8), np.int64)[values.offset : values.offset + len(values) + 1]
        block, none = np.frombuffer(key.ljust(64, b"\0"), "<u4"), np.empty((0, 2), np.uint32)
        content = np.frombuffer(data or b"", np.uint8)
        digests: Digests = kernels.hash_values(_start(key, person), block, none, content, offsets, _SIZE)
        digests[np.diff(offsets) == 0] = np.frombuffer(keyed.digest(), "<u4")
        return digests
    found = []
    for value in values.to_pylist():
        hashed = keyed.copy()
        hashed.update(value)
        found.append(hashed.digest())
    return np.frombuffer(b"".join(found), "<u4").reshape(-1, 4)


def row_digests(person: bytes, rows: Words, salts: Words, kernels: ModuleType | None = None) -> Digests:
    """The 128-bit digest of each row, with a salt of its own.

    rows: uint64 (n, w), w at least 1; salts: uint64 (n,).
    """
    if kernels is not None:
        content = np.ascontiguousarray(rows).view(np.uint8)
        offsets = np.arange(len(rows) + 1) * content.shape[1]
        pairs, none = salts.view(np.uint32).reshape(-1, 2), np.empty(0, np.uint32)
        digests: Digests = kernels.hash_values(
            _start(b"", person), none, pairs, content.reshape(-1), offsets, _SIZE
        )
        return digests
    hash_of, raw, salted = hashlib.blake2s, np.ascontiguousarray(rows).tobytes(), salts.tobytes()
    width = 8 * rows.shape[1]
    found = [
        hash_of(raw[at * width : (at + 1) * width], digest_size=_SIZE, salt=salt, person=person).digest()
        for at, salt in enumerate(salted[i : i + 8] for i in range(0, len(salted), 8))
    ]
    return np.frombuffer(b"".join(found), "<u4").reshape(-1, 4)


def _start(key: bytes, person: bytes) -> NDArray[np.uint32]:
    """The hash's parameters: digest and key size, one tree of one leaf, no salt, and what it is for."""
    parameters = bytes([_SIZE, len(key), 1, 1]).ljust(24, b"\0") + person.ljust(8, b"\0")
    return np.frombuffer(parameters, "<u4")
