"""Ids as points of curve25519, and their blinding: the arithmetic under entity alignment.

Taken alone nothing here is a protocol; the roles in `protocols.psi` say who learns what.

- `encode_points` hashes each id, under a key of the run, to a field element and maps that to the curve by
  Elligator 2, so the image is always on the curve and never on its twist. (Hashing straight to a
  u-coordinate would leave "curve or twist" visible through every blinding: one bit of each id.)
- `multiply` is X25519: the u-coordinate of clamp(scalar) times the point. Clamping makes the scalar a
  multiple of 8, which clears the cofactor.
- `new_blinding` gives a scalar and one that undoes it.
- `check_points` refuses points off the curve, of small order, and written in another way.

Assumes decisional Diffie-Hellman on curve25519 with the hash as a random oracle. gmpy2 and Python integers
do not run in constant time in the ids, so code that shares the CPU could learn about them by timing; the
multiplication, OpenSSL's, is constant-time in the scalar.

Large sets are served by the kernels of `protocols.hazmat.curve25519`, small ones by the libraries (OpenSSL,
gmpy2, hashlib), with the same result to the bit; `prepare` says which, and `VFL_KERNELS` decides otherwise.
The kernels release the GIL and share the cores (`protocols.hazmat.threads`). OpenSSL's X25519 holds it; its
batches go through joblib: a user's `joblib.parallel_config` moves them to processes or a cluster, together
with the scalar that they need.

Sources: RFC 7748 section 5 (X25519), RFC 9380 section 6.7.1 (the map).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from joblib import Parallel, delayed
from numpy.typing import NDArray

from protocols.hazmat import prepared, switch, threads

try:
    from gmpy2 import divm, legendre, mpz
except ImportError:  # twenty times slower, same values

    def mpz(value: int) -> int:
        return value

    def divm(numerator: int, denominator: int, modulus: int) -> int:
        return numerator * pow(denominator, -1, modulus) % modulus

    def legendre(value: int, modulus: int) -> int:
        power = pow(value, modulus // 2, modulus)
        return power if power < 2 else -1


Points = NDArray[np.uint8]  # (n, 32): u-coordinates, little-endian, each below p

P = mpz(2**255 - 19)
A = mpz(486662)  # the curve is v^2 = u^3 + A u^2 + u
ORDER = (
    2**252 + 27742317777372353535851937790883648493
)  # of the subgroup; a prime. The curve has 8 times as many

# u-coordinates of the points of order 2, 4 and 8: times any clamped scalar they give zero.
SMALL_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)

_BATCH = 4096  # ids a joblib task; a tenth of a second of work hides the cost of a task
_PERSON = b"vfl psi ell2 v1"  # keeps this use of the hash to itself


def new_scalar() -> bytes:
    """A secret scalar from the operating system's generator, 32 bytes; `multiply` clamps it."""
    return secrets.token_bytes(32)


def new_blinding() -> tuple[bytes, bytes]:
    """A new secret scalar, and one that undoes it in the subgroup of prime order, where all products are:
    there multiply(second, multiply(first, points)) gives the points back."""
    while True:
        scalar = new_scalar()
        back = undoing(scalar)
        if back is not None:
            return scalar, back


def undoing(scalar: bytes) -> bytes | None:
    """A scalar that undoes `multiply` by `scalar` in the subgroup; None where there is none, with probability
    2^-126.

    X25519 multiplies by 2^254 + 8j for some 0 <= j < 2^251. A point and its negative have the same u, so the
    inverse modulo ORDER will do, or its negative: their j, modulo ORDER, add up to ORDER - 2^252, which is
    about 2^124, so that one of both is below 2^251 and the other is not, but for few. Python's inversion
    takes longer for some scalars, so this is for secrets of one run.
    """
    clamped = int.from_bytes(scalar, "little") & (2**254 - 8) | 2**254
    inverse = pow(clamped, -1, ORDER)
    for wanted in (inverse, -inverse):
        j = (wanted - 2**254) * pow(8, -1, ORDER) % ORDER
        if j < 2**251:
            return (2**254 + 8 * j).to_bytes(32, "little")
    return None


def prepare(count: int) -> prepared.Prepared:
    """Have ready whatever serves a set of `count` points: nothing, compiled code from disk, or a compiler's
    work.

    The other functions do this themselves; whoever shows progress calls it before, since the first time on a
    machine it takes longer than many a set.
    """
    return switch.prepare(count)[0]


def encode_points(key: bytes, values: Sequence[bytes] | pa.LargeBinaryArray) -> Points:
    """Map each value to a point of the curve, by Elligator 2 of its keyed hash.

    `key`: 16 to 64 bytes that both sides of a run derive and nobody else knows. `values`: no nulls; an Arrow
    array is hashed from its buffers. Returns uint8 (n, 32). A value whose image is of small order exists with
    probability below 2^-250.
    """
    if not 16 <= len(key) <= 64:
        raise ValueError(f"the key of the hash should have 16 to 64 bytes, got {len(key)}")
    _, kernels = switch.prepare(len(values))
    if kernels:
        data, ends = buffers(values)
        parts = [ends[at : at + _BATCH + 1] for at in range(0, len(values), _BATCH)]
        encoded: Points = _by_kernel(
            kernels.encode, [(key, _PERSON, data[part[0] : part[-1]], part - part[0]) for part in parts]
        )
        return encoded
    return _in_batches(_encode, key, values.to_pylist() if isinstance(values, pa.Array) else values)


def multiply(scalar: bytes, points: Points) -> Points:
    """X25519 of one 32-byte scalar with each point: uint8 (n, 32) to uint8 (n, 32), same order.

    Raises ValueError when a point is of small order. It does not look for the other faults that
    `check_points` finds: a point on the twist is multiplied on the twist, and bit 255 is ignored.
    """
    raw = _raw(points)
    _, kernels = switch.prepare(len(points))
    if kernels:
        products: Points = _by_kernel(kernels.multiply, [(scalar, part) for part in _parts(points)])
        if not products.any(axis=1).all():
            raise _zero_product(len(points))
        return products
    return _in_batches(_multiply, scalar, [raw[i : i + 32] for i in range(0, len(raw), 32)])


def check_points(points: Points) -> None:
    """Raise ValueError, with counts and no value, unless every point is on the curve, under its one name, and
    none of small order.

    None of these faults would show a peer our scalar: clamping clears the cofactors of the curve (8) and of
    its twist (4), and both groups are of prime order beyond that. But a point of small order makes everyone's
    blinded id the same, a number not below p is a second name for a point, and half of all random strings
    lie on the twist, so the check catches a peer that hashes or orders bytes differently. It costs a tenth
    of the multiplication that follows. What it does not look for, since that would cost as much as that
    multiplication: a point outside the subgroup of prime order. Eight such points have one product, so a peer
    that lies could have one id counted several times.
    """
    raw = _raw(points)
    _, kernels = switch.prepare(len(points))
    alien, twist, small = _faults_by_kernel(kernels, points) if kernels else _faults(raw)
    if alien or twist or small:
        raise ValueError(
            f"of {len(points)} points {alien} are not below the field's prime, {twist} lie on the twist of "
            f"curve25519 and {small} are of small order; none of them should"
        )


def _faults(raw: bytes) -> tuple[int, int, int]:
    """How many points are not below p, on the twist, of small order; a point has one fault at most."""
    alien = twist = small = 0
    for at in range(0, len(raw), 32):
        u = mpz(int.from_bytes(raw[at : at + 32], "little"))
        if u >= P:
            alien += 1
        elif u in SMALL_ORDER:
            small += 1
        elif legendre(u * ((u + A) * u + 1), P) < 0:
            twist += 1
    return alien, twist, small


def _faults_by_kernel(kernels: ModuleType, points: Points) -> tuple[int, int, int]:
    twisted = _by_kernel(kernels.on_twist, [(part,) for part in _parts(points)])
    words = np.ascontiguousarray(points).view("<u8")
    top = (words[:, 3] == 2**63 - 1) & (words[:, 1:3] == 2**64 - 1).all(axis=1) & (words[:, 0] >= 2**64 - 19)
    alien = top | (words[:, 3] >= 2**63)
    weak = np.array([list(u.to_bytes(32, "little")) for u in SMALL_ORDER], np.uint8).view("<u8")
    small = (words[:, None, :] == weak).all(axis=2).any(axis=1)
    return int(alien.sum()), int((twisted & ~alien & ~small).sum()), int(small.sum())


def map_to_curve(r: int) -> int:
    """Elligator 2 of a field element `r`: the u-coordinate of a point of the curve, below p.

    RFC 9380 section 6.7.1 with Z = 2. Its exceptional case, 1 + 2 r^2 = 0, has no solution here, since -1 is
    a square and 2 is not.
    """
    bottom = 2 * r * r + 1
    # The curve's right-hand side at u = -A / bottom, times the square bottom^4: no division needed for it.
    right = A * bottom * (A * A * (bottom - 1) - bottom * bottom)
    u = divm(-A, bottom, P)
    return int(u) if legendre(right, P) >= 0 else int(-u - A) % (2**255 - 19)


def _encode(key: bytes, values: Sequence[bytes]) -> bytes:
    # 64 bytes reduced mod p are within 2^-256 of uniform.
    keyed = hashlib.blake2b(key=key, person=_PERSON)
    coded = []
    for value in values:
        hashed = keyed.copy()
        hashed.update(value)
        r = mpz(int.from_bytes(hashed.digest(), "little")) % P
        coded.append(map_to_curve(r).to_bytes(32, "little"))
    return b"".join(coded)


def _multiply(scalar: bytes, points: Sequence[bytes]) -> bytes:
    load, exchange = X25519PublicKey.from_public_bytes, X25519PrivateKey.from_private_bytes(scalar).exchange
    try:
        return b"".join([exchange(load(point)) for point in points])
    except ValueError:
        raise _zero_product(len(points)) from None


def _zero_product(count: int) -> ValueError:
    return ValueError(f"a point among {count} is of small order: its product is zero")


def _raw(points: Points) -> bytes:
    if points.dtype != np.uint8 or points.ndim != 2 or points.shape[1] != 32:
        raise ValueError(f"points should be uint8 (n, 32), got {points.dtype} {points.shape}")
    return points.tobytes()


def _parts(points: Points) -> list[Points]:
    return [points[at : at + _BATCH] for at in range(0, len(points), _BATCH)]


def _in_batches(
    fn: Callable[[bytes, Sequence[bytes]], bytes], secret: bytes, items: Sequence[bytes]
) -> Points:
    if len(items) <= _BATCH:
        done = [fn(secret, items)]
    else:
        parts = (items[at : at + _BATCH] for at in range(0, len(items), _BATCH))
        done = Parallel()(delayed(fn)(secret, part) for part in parts)
    return np.frombuffer(b"".join(done), np.uint8).reshape(-1, 32)


def buffers(values: Sequence[bytes] | pa.LargeBinaryArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all values, and where in them each begins and the last ends: uint8 (size,), int64 (n +
    1,).
    """
    array = values if isinstance(values, pa.Array) else pa.array(values, pa.large_binary())
    _, ends, data = array.buffers()
    return np.frombuffer(data or b"", np.uint8), np.frombuffer(ends, np.int64)[
        array.offset : array.offset + len(array) + 1
    ]


def _by_kernel(function: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> Any:
    """A function of `protocols.hazmat.curve25519` on the arguments of each part; the results one after
    another.
    """
    if len(parts) == 1:
        return function(*parts[0])
    return np.concatenate(threads.run([partial(function, *part) for part in parts]))
