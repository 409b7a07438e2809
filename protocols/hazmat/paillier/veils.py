"""Sums that the key's owner opens for the one who has them: it reads nothing, and tells a few bits of each.

Takes part: whoever has sums under another's key, and the key's owner.

    has the sums:   veiled, masks = veil(sums)            sends `veiled`
    has the key:    words = window(key, veiled, bits)     sends `words`
    has the sums:   unveil(words, masks, sums.layout, bits)

Who learns what: the key's owner nothing, whatever it encrypted before. To each plaintext a mask is added
that is uniform over all n plaintexts, so what it decrypts is uniform and independent of the sums; and what
it has is a ciphertext like any other, if n is prime to phi(n) (`proof`) and it was given new obfuscators
(`dump`). The other learns of each number that it returns its lowest `bits` and nothing else, whatever it
returns: sums that fit so many bits it learns exactly, and of anything else no more than so many bits.

A plaintext of several slots holds m = S_0 + S_1 2^w + S_2 2^(2w) + ..., and opens to v = (m + mask) mod n,
of which the window at slot j is floor(v / 2^(wj)) mod 2^bits. At least 64 bits of a plaintext stay free, so
that m + mask is v itself but with probability 2^-64. Then

    floor(v / 2^(wj)) = S_j + 2^w (...) + floor((S_0 + ... + S_(j-1) 2^(w(j-1)) + mask) / 2^(wj)),

where w is at least `bits`, and the last term, the mask with the carry of the slots below, is known once
those are. So slots are read from the lowest on. Nothing is rounded: what is read does not depend on masks or
keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from protocols.errors import ConfigError
from protocols.hazmat.paillier.array import EncryptedArray, Key
from protocols.hazmat.paillier.fixed import Array
from protocols.hazmat.paillier.layout import Layout

SPARE = 64  # bits of a plaintext that stay free: for `encrypt(..., spare=SPARE)`


def veil(sums: EncryptedArray) -> tuple[EncryptedArray, list[int]]:
    """`sums` below masks, and the masks, one for each plaintext. ConfigError where no bits are left free."""
    key, layout = sums.key, sums.layout
    used = layout.slots * layout.width if layout.slots > 1 else layout.bound.bit_length() + 1
    if used + SPARE > key.bits - 2:
        raise ConfigError(f"{sums!r} cannot be masked: encrypt with spare={SPARE}, or fewer bits a value")
    masks = [secrets.randbelow(key.modulus) for _ in range(layout.count)]
    return EncryptedArray(key, key.engine.multiply(sums.rows, key.engine.wrap(masks)), layout), masks


def window(key: Key, veiled: EncryptedArray, bits: int) -> Array:
    """The lowest `bits` of each number, uint64 of its shape; for the key's owner."""
    width, slots = veiled.layout.width, range(veiled.layout.slots)
    opened = [value % key.modulus for value in key.engine.decrypt(veiled.rows_for(key))]
    words = [(value >> width * slot) % 2**bits for value in opened for slot in slots]
    return veiled.layout.arranged(np.array(words, np.uint64))


def unveil(words: Array, masks: Sequence[int], layout: Layout, bits: int) -> Array:
    """The numbers, int64 of the layout's shape, from -2^(bits - 1) to below 2^(bits - 1)."""
    if layout.slots > 1 and layout.width < bits:
        raise ConfigError(f"slots of {layout.width} bits have no windows of {bits}")
    across = layout.grid[-1] if layout.slots > 1 else 1  # plaintexts for the last axis
    lines = words.reshape(len(masks) // across, -1).tolist() if masks else []
    found: list[int] = []
    for number, mask in enumerate(masks):
        row, part = divmod(number, across)
        below = mask  # and what the slots below hold
        for slot, word in enumerate(lines[row][part * layout.slots : (part + 1) * layout.slots]):
            low = (word - (below >> layout.width * slot)) % 2**bits
            found.append(low - 2**bits if low >= 2 ** (bits - 1) else low)
            below += found[-1] << layout.width * slot
    return np.array(found, np.int64).reshape(words.shape)
