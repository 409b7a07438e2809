"""Keyed BLAKE2b of many values, each to 64 bytes that are reduced to an element of the field of 2^255 - 19.

The batch form of `int.from_bytes(hashlib.blake2b(value, key=key, person=person).digest(), "little") % p`. It
branches on the length of a value and on nothing else of it, and not on the key.

Source: RFC 7693; `person` as in the BLAKE2 paper, section 2.8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.hazmat.compiled import kernel, part
from protocols.hazmat.words import freeze

Words = NDArray[np.uint64]

_IV = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    np.uint64,
)
_ROUNDS = 12
_SIGMA = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ],
    np.int64,
)


def hash_to_field(key: bytes, person: bytes, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Words:
    """The element of each value data[offsets[i] : offsets[i + 1]]: uint64 (n, 4), little-endian words, below
    p.

    key: 1 to 64 bytes; person: at most 16. `offsets` are taken as given: they must rise and stay within
    `data`.
    """
    parameters = bytes([64, len(key), 1, 1]).ljust(48, b"\0") + person.ljust(16, b"\0")
    start = _IV ^ np.frombuffer(parameters, "<u8")
    block = np.frombuffer(key.ljust(128, b"\0"), "<u8").copy()
    out = np.empty((len(offsets) - 1, 4), np.uint64)
    scratch = np.empty(16, np.uint64)
    hash_values(start, block, data, offsets, scratch, scratch.view(np.uint8), out)
    return out


@part
def rotated(x: Any, by: int) -> Any:
    return x >> np.uint64(by) | x << np.uint64(64 - by)


@part
def mixed(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    """G of RFC 7693, section 3.1."""
    a += b + x
    d = rotated(d ^ a, 32)
    c += d
    b = rotated(b ^ c, 24)
    a += b + y
    d = rotated(d ^ a, 16)
    c += d
    return a, rotated(b ^ c, 63), c, d


@part
def compress(h: Words, m: Words, length: Any, last: bool) -> None:
    """F of section 3.2, into h: `length` bytes with this block, which may be the last."""
    v0, v1, v2, v3, v4, v5, v6, v7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
    v8, v9, v10, v11, v12, v13, v14, v15 = _IV[0], _IV[1], _IV[2], _IV[3], _IV[4], _IV[5], _IV[6], _IV[7]
    v12 ^= np.uint64(length)
    v14 ^= np.uint64(0xFFFFFFFFFFFFFFFF) if last else np.uint64(0)
    for i in range(_ROUNDS):
        s = _SIGMA[i % 10]
        v0, v4, v8, v12 = mixed(v0, v4, v8, v12, m[s[0]], m[s[1]])
        v1, v5, v9, v13 = mixed(v1, v5, v9, v13, m[s[2]], m[s[3]])
        v2, v6, v10, v14 = mixed(v2, v6, v10, v14, m[s[4]], m[s[5]])
        v3, v7, v11, v15 = mixed(v3, v7, v11, v15, m[s[6]], m[s[7]])
        v0, v5, v10, v15 = mixed(v0, v5, v10, v15, m[s[8]], m[s[9]])
        v1, v6, v11, v12 = mixed(v1, v6, v11, v12, m[s[10]], m[s[11]])
        v2, v7, v8, v13 = mixed(v2, v7, v8, v13, m[s[12]], m[s[13]])
        v3, v4, v9, v14 = mixed(v3, v4, v9, v14, m[s[14]], m[s[15]])
    h[0] ^= v0 ^ v8
    h[1] ^= v1 ^ v9
    h[2] ^= v2 ^ v10
    h[3] ^= v3 ^ v11
    h[4] ^= v4 ^ v12
    h[5] ^= v5 ^ v13
    h[6] ^= v6 ^ v14
    h[7] ^= v7 ^ v15


@part
def copy(source: Words, target: Words) -> None:
    for i in range(8):
        target[i] = source[i]


@part
def reduced(h: Words, out: Words) -> None:
    """The 512-bit number in `h` modulo p: ten limbs of 51 bits, the upper five 19-fold, and two bits
    361-fold.
    """
    low = np.uint64(2**51 - 1)
    limbs = np.empty(10, np.uint64)
    for i in range(10):
        word, shift = np.uint64(51 * i) // np.uint64(64), np.uint64(51 * i) % np.uint64(64)
        limb = h[word] >> shift
        if shift > 13:
            limb |= h[word + np.uint64(1)] << (np.uint64(64) - shift)
        limbs[i] = limb & low
    for i in range(5):
        limbs[i] += np.uint64(19) * limbs[i + 5]
    limbs[0] += np.uint64(361) * (h[7] >> np.uint64(62))
    freeze(
        np.int64(limbs[0]),
        np.int64(limbs[1]),
        np.int64(limbs[2]),
        np.int64(limbs[3]),
        np.int64(limbs[4]),
        out,
    )


@kernel
def hash_values(
    start: Words, key: Words, data: Any, offsets: Any, words: Words, block: Any, out: Words
) -> None:
    """start: uint64 (8,), after the parameters; key: uint64 (16,), the first block; words: uint64 (16,),
    scratch, and block the same memory as uint8 (128,).
    """
    keyed, h = np.empty(8, np.uint64), np.empty(8, np.uint64)
    copy(start, keyed)
    compress(keyed, key, 128, False)
    for i in range(len(offsets) - 1):
        at, end = offsets[i], offsets[i + 1]
        if at == end:  # the key's block is the last
            copy(start, h)
            compress(h, key, 128, True)
        else:
            copy(keyed, h)
            length = 128
            while at < end:
                size = min(end - at, 128)
                for j in range(128):  # numba takes seconds to compile an assignment of slices
                    block[j] = data[at + j] if j < size else np.uint8(0)
                at += size
                length += size
                compress(h, words, length, at == end)
        reduced(h, out[i])
