"""The proof that a key's modulus is prime to phi: whoever has such a modulus makes it, nobody else can."""

from __future__ import annotations

import itertools
import secrets

import pytest
from gmpy2 import is_prime, next_prime
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, ProtocolError
from protocols.hazmat.paillier import Paillier, PaillierKey
from protocols.hazmat.paillier.proof import LEAST_FACTOR, ROOTS, holds, prove, size_of
from tests.protocols.hazmat.keys import P512, Q512, other, phe_pair, small, usual

LOOSE = Paillier(bits=1024, small_key=True)


def dividing(p: int, bits: int) -> int:
    """A prime q of so many bits of which p divides q - 1."""
    first = p * (2 ** (bits - 1) // p) + 1
    return int(next(q for q in itertools.count(first, p) if q % 2 and is_prime(q)))


@pytest.mark.parametrize("key", [small(), usual()], ids=["1024", "2048"])
def test_every_key_comes_with_its_proof(key: PaillierKey) -> None:
    taken = LOOSE.key_from_bytes(key.to_bytes())
    assert taken.fingerprint == key.fingerprint and not taken.can_decrypt
    assert taken.to_bytes() == key.to_bytes() == key.public().to_bytes()  # it can be told on
    assert len(key.to_bytes()) == (1 + ROOTS) * key.bits // 8


def test_only_its_owner_can_make_it() -> None:
    public = PaillierKey(phe_pair(P512, Q512)[0], small_key=True)
    with pytest.raises(ConfigError, match="came without a proof; the party that made it tells others"):
        public.to_bytes()
    mine, theirs = small().to_bytes(), other().to_bytes()
    size = size_of(small().modulus)
    for wrong in (mine[:size] + theirs[size:], mine[:size] + bytes(7 * size), mine[:size] * 8):
        with pytest.raises(ProtocolError, match="without a valid proof that n is prime to phi"):
            LOOSE.key_from_bytes(wrong)
    with pytest.raises(ProtocolError, match="product of two primes"):
        LOOSE.key_from_bytes(mine[:size])


def test_a_proof_of_another_length_is_not_looked_at_nor_kept() -> None:
    """What was checked is remembered, so that a peer could fill memory with keys of many megabytes."""
    raw = small().to_bytes()
    behind_zeros = raw[:128].rjust(1025, b"\0")  # as much of a long key as is read for n
    before = holds.cache_info()
    for wrong in (raw + bytes(3), behind_zeros.ljust(8 << 20, b"\0")):
        with pytest.raises(ProtocolError, match="a Paillier key"):
            LOOSE.key_from_bytes(wrong)
    assert holds.cache_info() == before


@given(st.integers(0, 8 * 7 * 128 - 1))
def test_no_bit_of_it_can_be_changed(place: int) -> None:
    raw = bytearray(small().to_bytes())
    raw[128 + place // 8] ^= 1 << place % 8
    with pytest.raises(ProtocolError, match="without a valid proof"):
        LOOSE.key_from_bytes(bytes(raw))


def test_a_modulus_that_is_not_prime_to_phi_has_none() -> None:
    """For each draw its owner has a root with probability 1 / p, and needs seven."""
    p = int(next_prime(LEAST_FACTOR))
    q = dividing(p, 1024)
    with pytest.raises(ZeroDivisionError):  # as the honest way goes
        prove(p, q)
    with pytest.raises(ZeroDivisionError):
        prove(P512, P512)
    # A root that is right but for the part of order p is none.
    n = p * q
    guessed = b"".join(secrets.randbelow(n).to_bytes(size_of(n), "big") for _ in range(ROOTS))
    assert not holds(n, guessed)


def test_a_modulus_with_a_small_factor_is_refused_whatever_its_proof() -> None:
    """Where p is small, draws have roots often enough to try until all have."""
    small_factor, large = 1009, int(next_prime(2**1014))
    proof = prove(small_factor, large)  # prime to phi, as it happens
    assert not holds(small_factor * large, proof)
    name = (small_factor * large).to_bytes(size_of(small_factor * large), "big")
    with pytest.raises(ProtocolError, match="without a valid proof"):
        LOOSE.key_from_bytes(name + proof)
