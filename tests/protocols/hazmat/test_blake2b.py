"""The batch hash gives what hashlib gives, reduced."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.hazmat.blake2b import hash_to_field

P = 2**255 - 19


def reference(key: bytes, person: bytes, value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, key=key, person=person).digest(), "little") % P


def batch(key: bytes, person: bytes, values: list[bytes], before: bytes = b"") -> list[int]:
    data = np.frombuffer(before + b"".join(values), np.uint8)
    offsets = np.cumsum([len(before), *map(len, values)])
    return [int.from_bytes(row.tobytes(), "little") for row in hash_to_field(key, person, data, offsets)]


@given(
    st.binary(min_size=1, max_size=64),
    st.binary(max_size=16),
    st.lists(st.binary(max_size=300), max_size=30),
    st.binary(max_size=5),
)
def test_it_is_hashlibs(key: bytes, person: bytes, values: list[bytes], before: bytes) -> None:
    assert batch(key, person, values, before) == [reference(key, person, value) for value in values]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 255, 256, 257, 10_000])
def test_values_around_the_ends_of_blocks(size: int) -> None:
    values = [bytes(size), b"\xff" * size, bytes(i % 251 for i in range(size))]
    for key in (b"k", bytes(range(32)), b"\xff" * 64):
        assert batch(key, b"p", values) == [reference(key, b"p", value) for value in values]


def test_thousands_of_values() -> None:
    values = [f"id-{i}".encode() for i in range(5000)]
    hashed = batch(bytes(32), b"", values)
    assert hashed == [reference(bytes(32), b"", value) for value in values] and max(hashed) < P
