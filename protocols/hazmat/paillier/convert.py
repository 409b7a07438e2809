"""To and from `phe.EncryptedNumber`, exactly.

phe writes a number as integer * 16**exponent and keeps an exponent for each; an array has one scale for all,
value = integer * 2**-bits. Both keep negative integers as n - |integer|, so only scales differ.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf
from typing import Any

import numpy as np
from phe import EncryptedNumber

from protocols.errors import ConfigError
from protocols.hazmat.paillier.array import EncryptedArray
from protocols.hazmat.paillier.fixed import Array
from protocols.hazmat.paillier.keys import PaillierKey
from protocols.hazmat.paillier.layout import Layout, header
from protocols.hazmat.paillier.words import to_ints, to_words, word_count


def to_phe(array: EncryptedArray) -> Array:
    """An object array of `phe.EncryptedNumber`, of the same shape and values.

    The scale becomes the next power of 16. phe re-randomises each number when it is sent (its default).
    """
    key = array.key
    if not isinstance(key, PaillierKey) or array.layout.slots > 1:
        raise ConfigError(
            f"{array!r} is not one phe number a value; encrypt with Paillier and without terms="
        )
    exponent = -(-array.layout.bits // 4)
    words = key.words(array.rescaled(4 * exponent).rows, array.layout)
    numbers = np.empty(array.layout.count, dtype=object)
    numbers[:] = [EncryptedNumber(key.phe, int(c), -exponent) for c in to_ints(words)]
    return numbers.reshape(array.shape)


def from_phe(numbers: Any, key: PaillierKey, limit: float) -> EncryptedArray:
    """An array from a `phe.EncryptedNumber`, or an array or list of them, in any exponents.

    limit: none is larger in magnitude; whoever encrypted them knows. The array takes the finest scale among
    them. ConfigError for numbers of another key, and where so fine a scale has no room up to `limit`.
    """
    given = np.asarray(numbers, dtype=object)
    flat: list[EncryptedNumber] = given.ravel().tolist()
    if any(not isinstance(number, EncryptedNumber) for number in flat):
        raise ConfigError("from_phe takes phe.EncryptedNumber, or an array of them")
    if any(number.public_key != key.phe for number in flat):
        raise ConfigError("a phe number is encrypted under another key than this one")
    if not 0 < limit < inf:
        raise ConfigError(f"from_phe(limit={limit!r}): expected a finite number above 0")
    finest = min((number.exponent for number in flat), default=0)
    room = key.bits - 2
    bits = -4 * finest
    bound = max(1, -int(-Fraction(limit) * Fraction(2) ** bits // 1))
    layout = Layout(given.shape, bits, bound, room)
    if bound > layout.capacity:
        raise ConfigError(
            f"numbers up to {limit:g} in steps of 16**{finest} need {bound.bit_length() + 1} bits, and a "
            f"plaintext of this key has {room}; let phe encrypt with a coarser precision="
        )
    width = word_count(2 * key.bits)
    raw = to_words([_ciphertext(number) for number in flat], width)
    array = key.load(raw, header(layout, key.fingerprint))
    steps = [16 ** (number.exponent - finest) for number in flat]
    if all(step == 1 for step in steps):
        return array
    return EncryptedArray(key, key.engine.power(array.rows, steps), layout)


def _ciphertext(number: EncryptedNumber) -> int:
    return int(number.ciphertext(be_secure=False))
