"""BLAKE2s of many values is hashlib's of each, by either way."""

from __future__ import annotations

import hashlib
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.hazmat import oprf_kernels
from protocols.hazmat.blake2s import keyed_digests, row_digests

WAYS = [None, oprf_kernels]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=16, max_size=32), st.lists(st.binary(max_size=200), max_size=40), st.data())
def test_a_value_has_the_digest_of_hashlib(
    way: ModuleType | None, key: bytes, values: list[bytes], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(values)))
    array = pa.array(values, pa.large_binary()).slice(start)
    expected = [
        hashlib.blake2s(v, key=key, person=b"for this", digest_size=16).digest() for v in values[start:]
    ]
    assert [row.tobytes() for row in keyed_digests(key, b"for this", array, way)] == expected


@pytest.mark.parametrize("way", WAYS)
def test_every_length_about_the_edges_of_blocks(way: ModuleType | None) -> None:
    values = [bytes(range(256))[:size] * (1 + size // 200) for size in range(257)]
    found = keyed_digests(bytes(32), b"x", pa.array(values, pa.large_binary()), way)
    expected = [hashlib.blake2s(v, key=bytes(32), person=b"x", digest_size=16).digest() for v in values]
    assert [row.tobytes() for row in found] == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "width"), [(0, 7), (1, 7), (15, 8), (16, 1), (17, 7), (100, 20)])
def test_a_row_has_the_digest_of_hashlib_with_its_salt(way: ModuleType | None, n: int, width: int) -> None:
    rng = np.random.default_rng(n)
    rows, salts = rng.integers(0, 2**64, (n, width), np.uint64), rng.integers(0, 2**64, n, np.uint64)
    expected = [
        hashlib.blake2s(row.tobytes(), digest_size=16, salt=salt.tobytes(), person=b"for rows").digest()
        for row, salt in zip(rows, salts, strict=True)
    ]
    assert [row.tobytes() for row in row_digests(b"for rows", rows, salts, way)] == expected


@pytest.mark.parametrize("key", [b"", bytes(15), bytes(33)])
def test_a_key_of_another_size_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match=f"16 to 32 bytes, got {len(key)}"):
        keyed_digests(key, b"x", pa.array([b"a"], pa.large_binary()))
