"""Curve25519 in lanes: the compiled side of `protocols.hazmat.curve25519`, which says what it is for.

`work` is scratch memory for 3 GROUP elements, float64 (..., 5, 4) or uint64 (..., 5, 8), and its type says
which field is meant. Points and field elements come and go as uint64 (n, 4), little-endian words; n is a
multiple of the lanes. Nothing here branches on a bit of the scalar, or on a coordinate but for points of
small order.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from protocols.hazmat import field_float, field_whole
from protocols.hazmat.compiled import kernel, part
from protocols.hazmat.lanes import Vec, load, store, traced
from protocols.hazmat.words import freeze, thaw

A = 486662  # the curve is v^2 = u^3 + A u^2 + u
_A24 = 121665  # (A - 2) / 4
GROUP = 16  # blocks of lanes that share an inversion


def _field(a: Any) -> ModuleType:
    return field_float if a[0].lanes.holds == "float" else field_whole


def _number(a: Any, number: Any) -> list[Vec]:
    """The element `number`, below 2^20, in every lane."""
    return [a[0].like(number), *[a[0].like(0)] * 4]


def _sum_and_difference(f: ModuleType, v: Any, w: Any) -> Any:
    return f.tight(f.total(v, w)), f.tight(f.difference(v, w))


@traced
def settle(a: Any) -> Any:
    """An element from the limbs that `fill` writes."""
    return _field(a).settle(a)


@traced
def ladder_start(u: Any) -> Any:
    """What `ladder_step` takes for the point at infinity, (1 : 0), and for u, (u : 1)."""
    f, one = _field(u), _number(u, 1)
    return (one, one, *_sum_and_difference(f, f.widen(u), f.widen(one)))


@traced
def ladder_step(u: Any, a: Any, b: Any, c: Any, d: Any, mask: Any) -> Any:
    """RFC 7748's step, on sums and differences: a = x2 + z2, b = x2 - z2, c = x3 + z3, d = x3 - z3.

    It swaps (a, b) with (c, d) where `mask` is all ones. In this form each product is carried once, since
    sums are formed of products before they are carried, instead of carried again.
    """
    f = _field(u)
    (a, c), (b, d) = _swap(mask, a, c), _swap(mask, b, d)
    e, g = _sum_and_difference(f, f.product(d, a), f.product(c, b))
    c, d = _sum_and_difference(f, f.square(e), f.product(u, f.tight(f.square(g))))
    aa, bb = f.tight(f.square(a)), f.tight(f.square(b))
    e = f.apart(aa, bb)
    a, b = _sum_and_difference(f, f.product(aa, bb), f.product(e, f.scaled(e, _A24, aa)))
    return a, b, c, d


def _swap(mask: Any, a: Any, b: Any) -> tuple[Any, Any]:
    real = a[0].lanes.holds == "float"
    x, y = ([limb.bits() for limb in e] if real else e for e in (a, b))
    change = [(p ^ q) & p.like(mask) for p, q in zip(x, y, strict=True)]
    x, y = ([p ^ q for p, q in zip(e, change, strict=True)] for e in (x, y))
    return ([p.double() for p in x], [p.double() for p in y]) if real else (x, y)


@traced
def ladder_end(a: Any, b: Any) -> Any:
    """2 x2 and 2 z2."""
    f = _field(a)
    return _sum_and_difference(f, f.widen(a), f.widen(b))


@traced
def _multiplied(a: Any, b: Any) -> Any:
    f = _field(a)
    return f.tight(f.product(a, b))


@traced
def _squared(a: Any) -> Any:
    f = _field(a)
    return f.tight(f.square(a))


@part
def times(a: Any, b: Any) -> Any:
    return _multiplied(a, b)


@part
def squares(a: Any, count: Any) -> Any:
    """a to the power 2^count."""
    for _ in range(count):
        a = _squared(a)
    return a


@part
def power(a: Any) -> Any:
    """a to the power 2^250 - 1, and to the powers 11 and 2: the chain of Bernstein's curve25519."""
    a2 = squares(a, 1)
    a9 = times(squares(a2, 2), a)
    a11 = times(a9, a2)
    e5 = times(squares(a11, 1), a9)
    e10 = times(squares(e5, 5), e5)
    e20 = times(squares(e10, 10), e10)
    e40 = times(squares(e20, 20), e20)
    e50 = times(squares(e40, 10), e10)
    e100 = times(squares(e50, 50), e50)
    e200 = times(squares(e100, 100), e100)
    return times(squares(e200, 50), e50), a11, a2


@part
def inverse(a: Any) -> Any:
    """a to the power p - 2; 0 of 0."""
    e250, a11, _ = power(a)
    return times(squares(e250, 5), a11)


@traced
def map_terms(r: Any) -> Any:
    """d = 1 + 2 r^2, and w = A d (A^2 (d - 1) - d^2): the curve's right-hand side at -A / d, times d^4."""
    f, none = _field(r), _number(r, 0)
    rr = f.widen(f.tight(f.square(r)))
    twice = f.tight(f.total(rr, rr))
    d = f.tight(f.total(f.widen(twice), f.widen(_number(r, 1))))
    inner = f.widen(f.scaled(f.scaled(twice, A, none), A, none))
    inner = f.tight(f.difference(inner, f.square(d)))
    return d, f.tight(f.product(f.scaled(d, A, none), inner))


@traced
def map_end(inverted: Any, sign: Any) -> Any:
    """u of Elligator 2: -A inverted if sign is 1, A inverted - A if it is -1."""
    f, half = _field(sign), _number(sign, A // 2)
    less = f.scaled(inverted, A, _number(sign, 0))
    inner = f.tight(f.difference(f.widen(half), f.widen(less)))
    return f.tight(f.difference(f.widen(f.tight(f.product(sign, inner))), f.widen(half)))


@part
def elligator(r: Any) -> Any:
    """Elligator 2 with one power for both the division and the choice of the root.

    With y = w d^2 and s = y^((p - 5) / 8), e = s^2 y is a fourth root of unity; e^2 says whether w is a
    square, and 1 / d = s^2 w d / e. Neither w nor d is ever 0: -1/2 and A^2 - 4 are no squares.
    """
    d, w = map_terms(r)
    wd = times(w, d)
    y = times(wd, d)
    s = times(squares(power(y)[0], 2), y)
    ss = squares(s, 1)
    e = times(ss, y)
    sign = squares(e, 1)
    return map_end(times(times(ss, wd), times(sign, e)), sign)


@traced
def right_side(u: Any) -> Any:
    """u^3 + A u^2 + u."""
    f = _field(u)
    inner = f.tight(f.total(f.square(u), f.widen(f.scaled(u, A, _number(u, 1)))))
    return f.tight(f.product(u, inner))


@part
def legendre(a: Any) -> Any:
    """a to the power (p - 1) / 2 = 16 (2^250 - 1) + 6: 1 of squares, -1 of others, 0 of 0."""
    e250, _, a2 = power(a)
    return times(squares(e250, 4), times(squares(a2, 1), a2))


@part
def fill(words: Any, at: Any, work: Any) -> None:
    """Rows at, at + 1, ... of `words` as limbs, one row to a lane."""
    for lane in range(work.shape[1]):
        t = thaw(words[at + lane])
        work[0, lane], work[1, lane], work[2, lane], work[3, lane], work[4, lane] = t


@part
def empty(work: Any, words: Any, at: Any) -> None:
    """Elements to the words of the numbers below p that they stand for."""
    for lane in range(work.shape[1]):
        t0, t1, t2, t3, t4 = work[0, lane], work[1, lane], work[2, lane], work[3, lane], work[4, lane]
        freeze(np.int64(t0), np.int64(t1), np.int64(t2), np.int64(t3), np.int64(t4), words[at + lane])


@part
def take(work: Any) -> Any:
    return load(work, 0), load(work, 1), load(work, 2), load(work, 3), load(work, 4)


@part
def put(work: Any, a: Any) -> None:
    store(work, 0, a[0])
    store(work, 1, a[1])
    store(work, 2, a[2])
    store(work, 3, a[3])
    store(work, 4, a[4])


@part
def ladder(points: Any, at: Any, masks: Any, x: Any, z: Any) -> None:
    """RFC 7748's ladder for as many points as there are lanes: their multiples, x : z."""
    fill(points, at, x)
    u = settle(take(x))
    a, b, c, d = ladder_start(u)
    for mask in masks:
        a, b, c, d = ladder_step(u, a, b, c, d, mask)
    ends = ladder_end(a, b)
    put(x, ends[0])
    put(z, ends[1])


@part
def infinity_to_zero(x: Any, z: Any, words: Any, at: Any) -> None:
    """x : 0 becomes 0 : 1. `words`: scratch, from row `at`."""
    empty(z, words, at)
    for lane in range(x.shape[1]):
        w = words[at + lane]
        if w[0] | w[1] | w[2] | w[3] == 0:  # tells a point of small order from others, as the result does
            for limb in range(5):
                x[limb, lane] = 0
                z[limb, lane] = 1 if limb == 0 else 0


@kernel
def multiply(points: Any, masks: Any, out: Any, work: Any) -> None:
    """u of the scalar's multiple of each point, 0 where it has none. masks: uint64 (255,), all ones where a
    bit differs from the one above it, the highest bit first; the last bit is 0, as in any clamped scalar.

    Montgomery's trick: one inversion, a tenth of a multiplication, serves GROUP blocks of lanes.
    """
    x, z, products = work[:GROUP], work[GROUP : 2 * GROUP], work[2 * GROUP :]
    lanes = work.shape[2]
    for start in range(0, len(points), GROUP * lanes):
        blocks = min(GROUP, (len(points) - start) // lanes)
        for i in range(blocks):
            ladder(points, start + i * lanes, masks, x[i], z[i])
            infinity_to_zero(x[i], z[i], out, start + i * lanes)
            put(products[i], times(take(products[i - 1]), take(z[i])) if i else take(z[i]))
        inverted = inverse(take(products[blocks - 1]))
        for i in range(blocks - 1, -1, -1):
            own = times(inverted, take(products[i - 1])) if i else inverted
            inverted = times(inverted, take(z[i]))
            put(x[i], times(take(x[i]), own))
            empty(x[i], out, start + i * lanes)


@kernel
def map_to_curve(elements: Any, out: Any, work: Any) -> None:
    """u of Elligator 2 of each element."""
    for at in range(0, len(elements), work.shape[2]):
        fill(elements, at, work[0])
        put(work[0], elligator(settle(take(work[0]))))
        empty(work[0], out, at)


@kernel
def squareness(points: Any, out: Any, work: Any) -> None:
    """1 for each u on the curve, -1 (mod p) for each on the twist, 0 where u^3 + A u^2 + u is 0."""
    for at in range(0, len(points), work.shape[2]):
        fill(points, at, work[0])
        put(work[0], legendre(right_side(settle(take(work[0])))))
        empty(work[0], out, at)
