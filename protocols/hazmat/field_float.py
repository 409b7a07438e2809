"""The field of 2^255 - 19 in doubles: five limbs of 51 bits, for CPUs that fuse a product and a sum.

Functions of `lanes.Vec`, run at compile time, the same as in `field_whole`. Two fused operations give a
product of two limbs in two halves, exactly. With T = 1.5 2^103, whose last bit weighs 2^51, and L = 1.5 2^52,
whose last bit weighs 1:

    h = fma(a, b, T)              is T + 2^51 q, where q is a b / 2^51 rounded,
    l = fma(a, b, (T + L) - h)    is L + (a b - 2^51 q), and the bracket is exact: (3 - q) 2^51,

as long as |a b| < 2^102, so that h stays between 2^103 and 2^104. The bits of h, read as a whole number, are
those of T plus q, and the bits of l those of L plus the rest: sums of them are sums of the halves, plus a
constant.

An *element* is five whole doubles of at most 2^50 + 2^14 in size, negative ones too, with weights 2^(51 i); a
*wide* is five sums, as whole numbers modulo 2^64 that mean -2^59 to 2^59; `tight` carries it back. Nothing
branches on a value, and none is a denormal, an infinity or no number, so that no operation takes longer for
some.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from protocols.hazmat.lanes import Vec, fma

Limbs = Sequence[Vec]

_TOP = 1.5 * 2.0**103
_LAST = 1.5 * 2.0**52
_TOP_BITS, _LAST_BITS = (int.from_bytes(struct.pack(">d", x), "big") for x in (_TOP, _LAST))
_ONE = 2.0**52  # its last bit weighs 1, and the bits below 2^52 are all zero
_ONE_BITS = int.from_bytes(struct.pack(">d", _ONE), "big")
_LOW = 2**51 - 1
_P = (2**51 - 19, _LOW, _LOW, _LOW, _LOW)


def _halves(a: Vec, b: Vec) -> tuple[Vec, Vec]:
    """The bits of l and of h above."""
    h = fma(a, b, a.like(_TOP))
    return fma(a, b, a.like(_TOP + _LAST) - h).bits(), h.bits()


def product(a: Limbs, b: Limbs) -> Limbs:
    """The wide a b, within 2^58: halves are at most 2^50, ten to a sum, of them 19-fold all but one."""
    return _columns([(i, j, a[i], b[j]) for i in range(5) for j in range(5)])


def square(a: Limbs) -> Limbs:
    """The wide a a."""
    twice = [limb + limb for limb in a]
    mixed = [(i, j, twice[i], a[j]) for i in range(5) for j in range(i + 1, 5)]
    return _columns(mixed + [(i, i, a[i], a[i]) for i in range(5)])


def _columns(terms: list[tuple[int, int, Vec, Vec]]) -> Limbs:
    sums: list[Vec | None] = [None] * 10
    excess = [0] * 10  # of the constants in the bits
    for i, j, x, y in sorted(terms, key=lambda term: term[0] + term[1]):
        for at, half, constant in zip(
            (i + j, i + j + 1), _halves(x, y), (_LAST_BITS, _TOP_BITS), strict=True
        ):
            before = sums[at]
            sums[at] = half if before is None else before + half
            excess[at] += constant
    columns = [column for column in sums if column is not None]
    return [
        columns[k] + _nineteen(columns[k + 5]) - (excess[k] + 19 * excess[k + 5]) % 2**64 for k in range(5)
    ]


def _nineteen(x: Vec) -> Vec:
    return (x << 4) + (x << 1) + x


def total(v: Limbs, w: Limbs) -> Limbs:
    """The wide v + w of two products or elements."""
    return [x + y for x, y in zip(v, w, strict=True)]


def difference(v: Limbs, w: Limbs) -> Limbs:
    """The wide v - w of two products or elements."""
    return [x - y for x, y in zip(v, w, strict=True)]


def tight(v: Limbs) -> Limbs:
    """The element that a wide stands for.

    2^8 p makes the sums positive and 2^50 centres what a limb keeps; a sum below 2^60 carries less than 2^9,
    times 19 around the top.
    """
    sums = [limb + (2**8 * p + 2**50) for limb, p in zip(v, _P, strict=True)]
    carries = [limb >> 51 for limb in sums]
    carries = [_nineteen(carries[4]), *carries[:4]]
    kept = [((limb & _LOW) | _ONE_BITS) + carry for limb, carry in zip(sums, carries, strict=True)]
    return [limb.double() - (_ONE + 2.0**50) for limb in kept]


def widen(a: Limbs) -> Limbs:
    """An element as a wide."""
    return [(limb + _LAST).bits() - _LAST_BITS for limb in a]


def apart(a: Limbs, b: Limbs) -> Limbs:
    """a - b, fit to be the first factor of `product` and `scaled`: limbs of at most 2^51 + 2^15."""
    return [x - y for x, y in zip(a, b, strict=True)]


def scaled(a: Limbs, factor: int, b: Limbs) -> Limbs:
    """The element factor a + b, for a factor below 2^20."""
    halves = [_halves(limb, limb.like(factor)) for limb in a]
    high = [half - _TOP_BITS for _, half in halves]
    high = [_nineteen(high[4]), *high[:4]]
    low = [half - _LAST_BITS for half, _ in halves]
    return tight(total(total(low, high), widen(b)))


def settle(a: Limbs) -> Limbs:
    """An element from five limbs below 2^51."""
    return tight([(limb + _ONE).bits() - _ONE_BITS for limb in a])
