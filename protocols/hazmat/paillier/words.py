"""Big numbers as rows of 64-bit words, little-endian: how ciphertexts are kept and sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gmpy2 import mpz, unpack
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # (n, w)


def word_count(bits: int) -> int:
    """Words that hold a number of `bits` bits."""
    return -(-bits // 64)


def to_ints(words: Words) -> list[Any]:
    """One mpz for each row."""
    count, width = words.shape
    raw = np.ascontiguousarray(words, dtype="<u8").tobytes()
    ints: list[Any] = unpack(mpz.from_bytes(raw, "little"), 64 * width) if raw else []
    return ints + [mpz(0)] * (count - len(ints))  # unpack leaves leading zeros out


def to_words(ints: Iterable[Any], width: int) -> Words:
    """uint64 (n, width). OverflowError for a number that is negative or does not fit."""
    raw = b"".join([value.to_bytes(8 * width, "little") for value in ints])
    return np.frombuffer(raw, dtype="<u8").reshape(-1, width)
