"""A proof by a key's owner that its modulus n is prime to phi(n), so that ciphertexts hold plaintexts alone.

Takes part: the owner of a key, who knows n = p q, and whoever is to use it, who sees n and the proof and
learns nothing else. Without it an owner could choose p as a divisor of q - 1. The units modulo n^2 then are
more than plaintexts times n-th residues: a ciphertext has a part beside these, which neither masks nor new
obfuscators touch, and in which the owner reads the private numbers that others multiply it by.

The owner shows n-th roots modulo n of numbers that a hash draws. If a prime P divides both n and phi(n), at
most one of P units has such a root. P divides n, and n is seen to have no factor below 2^20; so an owner
that cannot show it honestly passes 7 draws with probability 2^-140, and can try as often as it can hash.

It does not show that n has two factors only, nor that they are large: who gives its own key away harms
itself.
Source: Goldberg, Reyzin, Sagga and Baldimtsi 2019, "Efficient noninteractive certification of RSA moduli and
beyond" (Asiacrypt; eprint 2018/057), section 3.2.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from typing import Any

from gmpy2 import gcd, invert, mpz, powmod, powmod_sec, primorial

ROOTS = 7
LEAST_FACTOR = 1 << 20


def prove(p: int, q: int) -> bytes:
    """For the modulus p q: `ROOTS` numbers of as many bytes as it has. Takes p - 1 and q - 1 prime to it."""
    n = mpz(p) * q
    roots = []
    for drawn in _drawn(int(n)):
        a, b = (powmod_sec(drawn % x, invert(n, x - 1), mpz(x)) for x in (p, q))
        roots.append(a + p * ((b - a) * invert(p, q) % q))
    return b"".join(int(root).to_bytes(size_of(int(n)), "big") for root in roots)


@lru_cache(maxsize=64)  # of parties in one process each checks what the others have checked
def holds(n: int, proof: bytes) -> bool:
    """Whether `proof` is one for the odd modulus n."""
    size = size_of(n)
    if len(proof) != ROOTS * size or gcd(_small_primes(), n) != 1:
        return False
    roots = [mpz(int.from_bytes(proof[k * size : (k + 1) * size], "big")) for k in range(ROOTS)]
    return all(powmod(root, n, n) == drawn for root, drawn in zip(roots, _drawn(n), strict=True))


def size_of(n: int) -> int:
    """Bytes of n."""
    return -(-n.bit_length() // 8)


def _drawn(n: int) -> list[Any]:
    """Numbers modulo n that nobody has chosen."""
    size = size_of(n)
    seeds = (bytes([k]) + n.to_bytes(size, "big") for k in range(ROOTS))
    hashed = (hashlib.shake_256(b"vfl-toolkit paillier key 1" + seed).digest(size + 16) for seed in seeds)
    return [mpz(int.from_bytes(wide, "big")) % n for wide in hashed]


@cache
def _small_primes() -> Any:
    return primorial(LEAST_FACTOR)
