"""Sums under masks: the one who has them reads them exactly, and the key's owner reads nothing."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.hazmat.paillier import Encoded, Fixed, Paillier, Plain
from protocols.hazmat.paillier.array import EncryptedArray, Key
from protocols.hazmat.paillier.veils import SPARE, unveil, veil, window


@cache
def key(plain: bool = False) -> Key:
    return Plain(512).new_key() if plain else Paillier(512, small_key=True).new_key()


def sums(own: Key, rng: np.random.Generator, columns: int, outputs: int) -> EncryptedArray:
    """Of 50 rows, each sum below 2^26."""
    limit = Fixed(1000)
    numbers = own.encrypt(rng.integers(-1000, 1001, (50, outputs)), limit, terms=50, times=limit, spare=SPARE)
    return numbers.matmul(Encoded(rng.integers(-1000, 1001, (50, columns)), limit))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    columns=st.integers(1, 3),
    outputs=st.integers(1, 40),
    edge=st.sampled_from(["random", "least", "largest", "carries"]),
    plain=st.booleans(),
)
def test_the_mask_comes_off_exactly(seed: int, columns: int, outputs: int, edge: str, plain: bool) -> None:
    """Whatever carries and borrows go from slot to slot, and however many plaintexts there are.

    Of masks within 2^448 of 0 and n, of which nobody draws one, sums could lead round.
    """
    rng = np.random.default_rng(seed)
    found = sums(key(plain), rng, columns, outputs)
    fixed = {"least": 2**448, "largest": key(plain).modulus - 1 - 2**448, "carries": 2**449 - 1}
    with pytest.MonkeyPatch.context() as patch:
        if edge in fixed:
            chosen = SimpleNamespace(randbelow=lambda n: fixed[edge])
            patch.setattr("protocols.hazmat.paillier.veils.secrets", chosen)
        veiled, masks = veil(found)
    words, header = veiled.dump()
    shown = window(key(plain), key(plain).load(words, header), 27)
    assert shown.dtype == np.uint64 and shown.shape == (columns, outputs)
    np.testing.assert_array_equal(unveil(shown, masks, found.layout, 27), key(plain).decrypt(found))


def test_a_window_says_so_many_bits_of_each_number_whatever_the_plaintext() -> None:
    """One that returns any plaintexts it likes is told their lowest bits, at fixed places."""
    rng = np.random.default_rng(0)
    layout = sums(key(), rng, 1, 3).layout
    for _ in range(20):
        whole = int.from_bytes(rng.bytes(60), "big") % key().modulus
        cells = key().engine.multiply(key().engine.wrap([whole]), key().obfuscators(1))
        shown = window(key(), EncryptedArray(key(), cells, layout), 20)
        assert shown.tolist() == [[(whole >> layout.width * slot) % 2**20 for slot in range(3)]]


def test_what_leaves_no_bits_free_is_not_masked() -> None:
    limit = Fixed(1000)
    full = key().encrypt(np.ones((50, 40)), limit, terms=50, times=limit)
    with pytest.raises(ConfigError, match="cannot be masked: encrypt with spare=64"):
        veil(full)
    narrow = key().encrypt(np.ones((5, 3)), limit, terms=1, spare=SPARE)
    veiled, masks = veil(narrow)
    with pytest.raises(ConfigError, match="slots of 11 bits have no windows of 27"):
        unveil(window(key(), veiled, 27), masks, narrow.layout, 27)


def test_what_the_keys_owner_decrypts_is_spread_over_all_plaintexts() -> None:
    """Of the same small sums, again and again: each half, quarter and eighth of them as often."""
    found = sums(key(), np.random.default_rng(0), 1, 1)
    parts = [0] * 8
    for _ in range(400):
        veiled, _ = veil(found)
        (plain,) = key().engine.decrypt(veiled.rows)
        parts[plain % key().modulus * 8 // key().modulus] += 1
    assert min(parts) > 20 and max(parts) < 90  # 50 each, give or take six deviations
