"""The field of 2^255 - 19 in whole lanes: five limbs of 51 bits, with the 52-bit products of AVX512-IFMA.

Functions of `lanes.Vec`, run at compile time. An *element* is five limbs below 2^51 + 2^15, each with its
weight 2^(51 i); a *wide* is five sums of products below 2^60, which `tight` carries back to an element.
Nothing branches on a value. `field_float` has the same functions for CPUs without these products.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocols.hazmat.lanes import Vec, mhi, mlo

Limbs = Sequence[Vec]

_LOW = 2**51 - 1
_P = (2**51 - 19, _LOW, _LOW, _LOW, _LOW)


def product(a: Limbs, b: Limbs) -> Limbs:
    """The wide a b, below 2^59: a sum of ten halves at most, all but one of them 19-fold."""
    low = [a[0].like(0)] * 10
    high = [a[0].like(0)] * 10
    for i in range(5):
        for j in range(5):
            low[i + j] = mlo(low[i + j], a[i], b[j])
            high[i + j + 1] = mhi(high[i + j + 1], a[i], b[j])
    return _fold(low, high)


def square(a: Limbs) -> Limbs:
    """The wide a a. Sums are doubled and not limbs, since a doubled limb may have 53 bits."""
    low = [a[0].like(0)] * 10
    high = [a[0].like(0)] * 10
    for i in range(5):
        for j in range(i + 1, 5):
            low[i + j] = mlo(low[i + j], a[i], a[j])
            high[i + j + 1] = mhi(high[i + j + 1], a[i], a[j])
    low, high = [part << 1 for part in low], [part << 1 for part in high]
    for i in range(5):
        low[2 * i] = mlo(low[2 * i], a[i], a[i])
        high[2 * i + 1] = mhi(high[2 * i + 1], a[i], a[i])
    return _fold(low, high)


def _fold(low: Limbs, high: Limbs) -> Limbs:
    # A high half weighs 2^52 where the next limb weighs 2^51; 2^255 is 19.
    sums = [part + (half << 1) for part, half in zip(low, high, strict=True)]
    return [sums[k] + _nineteen(sums[k + 5]) for k in range(5)]


def _nineteen(x: Vec) -> Vec:
    return (x << 4) + (x << 1) + x


def total(v: Limbs, w: Limbs) -> Limbs:
    """The wide v + w of two products or elements."""
    return [x + y for x, y in zip(v, w, strict=True)]


def difference(v: Limbs, w: Limbs) -> Limbs:
    """The wide v - w of two products or elements, made positive by 2^9 p."""
    return [x + 2**9 * p - y for x, y, p in zip(v, w, _P, strict=True)]


def tight(v: Limbs) -> Limbs:
    """The element that a wide stands for; a limb below 2^61 carries at most 2^10, times 19 around the top."""
    carries = [limb >> 51 for limb in v]
    carries = [_nineteen(carries[4]), *carries[:4]]
    return [(limb & _LOW) + carry for limb, carry in zip(v, carries, strict=True)]


def widen(a: Limbs) -> Limbs:
    """An element as a wide."""
    return a


def apart(a: Limbs, b: Limbs) -> Limbs:
    """a - b, fit to be the first factor of `product` and `scaled`."""
    return tight(difference(a, b))


def scaled(a: Limbs, factor: int, b: Limbs) -> Limbs:
    """The element factor a + b, for a factor below 2^20."""
    zero, by = a[0].like(0), a[0].like(factor)
    high = [mhi(zero, limb, by) << 1 for limb in a]
    high = [_nineteen(high[4]), *high[:4]]
    return tight([mlo(limb, more, by) + half for limb, more, half in zip(b, a, high, strict=True)])


def settle(a: Limbs) -> Limbs:
    """An element from five limbs below 2^51."""
    return a
