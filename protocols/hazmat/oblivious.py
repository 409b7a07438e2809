"""Oblivious transfer of seeds, and the bit matrix that a few hundred of them grow into.

Two parties. The giver has two seeds in each place, the taker one bit in each: the taker learns the seed that
its bit names and nothing of the other, the giver nothing of the bits. Chou and Orlandi's protocol over the
group of prime order in edwards25519, which libsodium provides:

    giver: A = a·G                         ->  taker
    taker: B = b·G, or b·G + A for bit 1   ->  giver       in each place a fresh b
    seeds: H(a·B) for bit 0, H(a·B - a·A) for bit 1; the taker's is H(b·A)

Each seed grows into a column of bits of any length (`Columns`), and `as_rows` turns columns into rows.

Assumes semi-honest parties, computational Diffie-Hellman in the group, the hash as a random oracle and AES as
a pseudorandom function. The library's multiplications are constant-time in their scalars.

Sources: Chou and Orlandi 2015, "The simplest protocol for oblivious transfer"; Ishai, Kilian, Nissim, Petrank
2003, "Extending oblivious transfers efficiently"; Warren, "Hacker's Delight", section 7-3 (the
transposition).
"""

from __future__ import annotations

import hashlib
import secrets
from types import ModuleType

import nacl.bindings as sodium
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from nacl.exceptions import CryptoError
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

_SEED = 16  # bytes: keys of AES-128


def offer() -> tuple[bytes, bytes]:
    """The giver's beginning: (a, A), of which A goes to the taker; both 32 bytes, of this run only."""
    scalar = _scalar()
    return scalar, sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)


def choose(offered: bytes, bits: NDArray[np.bool_]) -> tuple[Bytes, Bytes]:
    """The taker's answer to A: (points B for the giver, seeds): uint8 (k, 32) and (k, 16).

    ValueError if A is not a point of the group.
    """
    points, seeds = [], []
    for i, bit in enumerate(bits.tolist()):
        scalar = _scalar()
        product = _times(scalar, offered, "the point")
        plain = sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)
        point = (plain, sodium.crypto_core_ed25519_add(plain, offered))[bit]
        points.append(point)
        seeds.append(_seed(i, offered, point, product))
    return _table(points), _table(seeds)


def both_seeds(offered: tuple[bytes, bytes], points: Bytes) -> tuple[Bytes, Bytes]:
    """The giver's seeds for bit 0 and for bit 1, each uint8 (k, 16), from the taker's points B.

    offered: (a, A) of `offer`. ValueError if a B is not a point of the group.
    """
    scalar, own = offered
    shift = sodium.crypto_scalarmult_ed25519_noclamp(scalar, own)
    zeros, ones = [], []
    for i, row in enumerate(points):
        point = row.tobytes()
        product = _times(scalar, point, f"point {i}")
        zeros.append(_seed(i, own, point, product))
        ones.append(_seed(i, own, point, sodium.crypto_core_ed25519_sub(product, shift)))
    return _table(zeros), _table(ones)


class Columns:
    """One stream of pseudorandom bits a seed: AES-128 in counter mode."""

    def __init__(self, seeds: Bytes) -> None:
        self._streams = [Cipher(AES(seed.tobytes()), CTR(bytes(16))).encryptor() for seed in seeds]

    def take(self, words: int) -> Words:
        """The next bits of each stream: uint64 (k, words)."""
        taken = np.empty((len(self._streams), words), np.uint64)
        zeros = bytes(8 * words)
        for stream, column in zip(self._streams, taken, strict=True):
            stream.update_into(zeros, column.view(np.uint8).data)
        return taken


def as_rows(columns: Words, kernels: ModuleType | None = None) -> Words:
    """The transposed bit matrix: uint64 (64·g, w) to (64·w, g), bit j of row i from bit i of column j.

    Bit j of a row or column is bit j % 64 of its word j // 64, counted from the lowest.
    """
    k, w = columns.shape
    rows = np.empty((64 * w, k // 64), np.uint64)
    if kernels is not None:
        kernels.transpose(columns, rows)
    else:
        for at in range(0, w, 64):  # as much as a cache holds
            rows[64 * at : 64 * (at + 64)] = _transposed(columns[:, at : at + 64])
    return rows


def _transposed(columns: Words) -> Words:
    k, w = columns.shape
    blocks = columns.reshape(k // 64, 64, w).copy()
    width, mask = 32, np.uint64(2**32 - 1)
    while width:  # swaps the squares off the diagonal, of 32 bits, 16, 8, 4, 2 and 1
        halves = blocks.reshape(k // 64, 32 // width, 2, width, w)
        upper, lower, shift = halves[:, :, 0], halves[:, :, 1], np.uint64(width)
        moved = ((upper >> shift) ^ lower) & mask
        lower ^= moved
        upper ^= moved << shift
        width //= 2
        mask ^= mask << np.uint64(max(width, 1))
    return blocks.transpose(2, 1, 0).reshape(64 * w, k // 64)


def _scalar() -> bytes:
    return sodium.crypto_core_ed25519_scalar_reduce(secrets.token_bytes(64))


def _times(scalar: bytes, point: bytes, which: str) -> bytes:
    """The product; libsodium refuses points off the curve, outside the group, and written in another way."""
    try:
        return sodium.crypto_scalarmult_ed25519_noclamp(scalar, point)
    except CryptoError:
        raise ValueError(f"{which} is not in the group of prime order of edwards25519") from None


def _seed(place: int, offered: bytes, point: bytes, product: bytes) -> bytes:
    said = place.to_bytes(4, "little") + offered + point + product
    return hashlib.blake2b(said, digest_size=_SEED, person=b"vfl base ot 1").digest()


def _table(values: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
