"""Oblivious transfer: the taker has the seed that it chose, and the matrix is transposed."""

from __future__ import annotations

import nacl.bindings as sodium
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from protocols.hazmat import oblivious, oprf_kernels

rng = np.random.default_rng(0)


def test_the_taker_gets_the_seed_of_its_bit_and_the_giver_both() -> None:
    bits = rng.random(40) < 0.5
    offered = oblivious.offer()
    points, taken = oblivious.choose(offered[1], bits)
    zeros, ones = oblivious.both_seeds(offered, points)
    np.testing.assert_array_equal(taken, np.where(bits[:, None], ones, zeros))
    assert len({seed.tobytes() for seed in (*zeros, *ones)}) == 80


def test_points_and_seeds_are_fresh() -> None:
    bits = np.zeros(3, np.bool_)
    (one, a), (two, b) = oblivious.offer(), oblivious.offer()
    assert one != two and a != b
    first, second = oblivious.choose(a, bits), oblivious.choose(a, bits)
    assert not (first[0] == second[0]).all(axis=1).any() and not (first[1] == second[1]).all(axis=1).any()


IDENTITY = (1).to_bytes(32, "little")
BAD = {
    "the neutral element": IDENTITY,
    "a point of order 4": bytes(32),
    "off the curve": (2).to_bytes(32, "little"),
    "not below the prime": (2**255 - 19 + 3).to_bytes(32, "little"),
    "in the group but for a part of order 4": sodium.crypto_core_ed25519_add(
        sodium.crypto_scalarmult_ed25519_base_noclamp(IDENTITY), bytes(32)
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_point_outside_the_group_is_refused(what: str) -> None:
    point = np.frombuffer(BAD[what], np.uint8)
    with pytest.raises(ValueError, match="^the point is not in the group of prime order of edwards25519$"):
        oblivious.choose(BAD[what], np.zeros(2, np.bool_))
    offered = oblivious.offer()
    good, _ = oblivious.choose(offered[1], np.ones(1, np.bool_))
    with pytest.raises(ValueError, match="^point 1 is not in the group"):
        oblivious.both_seeds(offered, np.stack([good[0], point]))


def test_a_choice_that_leads_to_the_neutral_element_is_no_failure() -> None:
    """A taker may send A itself: its seed for bit 1 is then known to it, as it would be in any case."""
    offered = oblivious.offer()
    zeros, ones = oblivious.both_seeds(offered, np.frombuffer(offered[1], np.uint8).reshape(1, 32))
    assert zeros.tobytes() != ones.tobytes()


def test_a_column_has_the_published_bits() -> None:
    """AES-128 of the counters 0, 1 and 2 under the key of zeros, as in test cases 1 and 2 of the GCM proposal
    to NIST (McGrew and Viega)."""
    published = (
        "66e94bd4ef8a2c3b884cfa59ca342b2e58e2fccefa7e3061367f1d57a4e7455a0388dace60b6a392f328c2b971b2fe78"
    )
    assert oblivious.Columns(np.zeros((1, 16), np.uint8)).take(6).tobytes().hex() == published


def test_columns_are_aes_in_counter_mode_whatever_the_pieces() -> None:
    seeds = rng.integers(0, 256, (3, 16), np.uint8)
    columns = oblivious.Columns(seeds)
    taken = np.concatenate([columns.take(words) for words in (1, 5, 2)], axis=1)
    for seed, column in zip(seeds, taken, strict=True):
        stream = Cipher(AES(seed.tobytes()), CTR(bytes(16))).encryptor()
        assert column.tobytes() == stream.update(bytes(64))


@pytest.mark.parametrize("words", [1, 7, 8, 9, 64, 130])
def test_rows_are_the_transposed_bits(words: int) -> None:
    columns = rng.integers(0, 2**64, (448, words), np.uint64)
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    rows = np.ascontiguousarray(np.packbits(bits.T, axis=1, bitorder="little")).view(np.uint64)
    np.testing.assert_array_equal(oblivious.as_rows(columns), rows)
    np.testing.assert_array_equal(oblivious.as_rows(columns, oprf_kernels), rows)
