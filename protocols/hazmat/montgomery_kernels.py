"""Montgomery products in lanes: the compiled side of `protocols.hazmat.montgomery`, which says what for.

One number to a lane, its limbs in as many vectors, so arrays of lanes are (limbs, lanes); their type says
which arithmetic is meant. Whole numbers (uint64, eight lanes) have limbs of 52 bits and AVX512-IFMA's
products. Doubles (four lanes) have signed limbs of 51 bits, and get the two halves of a product, exactly, by
fusing it with sums whose last bit weighs 2^51 and 1:

    h = fma(a, b, T)              T = 1.5 2^103: the bits of h are those of T, plus q = a b / 2^51 rounded,
    l = fma(a, b, (T + L) - h)    L = 1.5 2^52:  the bits of l are those of L, plus a b - 2^51 q.

Halves are added as bits, so every sum carries a known excess of the bits of T and L, which is taken away
where a sum is read. Products are Montgomery's, row by row: for R = 2^(bits limbs), a b / R modulo n. Results
are below 2 n (whole numbers) or between -n and n (doubles); sums stay below 2^60 up to 250 limbs.

Nothing branches on a number. `power` and `fixed_powers` read tables at secret digits.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from protocols.hazmat.compiled import kernel, part
from protocols.hazmat.lanes import Vec, fma, load, mhi, mlo, store, traced, turn

_TOP, _LAST, _ONE = 1.5 * 2.0**103, 1.5 * 2.0**52, 2.0**52
TOP_BITS, LAST_BITS, _ONE_BITS = (int.from_bytes(struct.pack(">d", x), "big") for x in (_TOP, _LAST, _ONE))
_LOW = 2**51 - 1
_U1, _U63, _U64 = np.uint64(1), np.uint64(63), np.uint64(64)


def _halves(a: Vec, b: Vec) -> tuple[Vec, Vec]:
    h = fma(a, b, a.like(_TOP))
    return fma(a, b, a.like(_TOP + _LAST) - h).bits(), h.bits()


def _signed(low: Vec) -> Vec:
    """The double that 51 bits mean, 2^50 too many."""
    return ((low & _LOW) | _ONE_BITS).double() - (_ONE + 2.0**50)


@traced
def row_start(total: Any, a: Any, b: Any, n: Any, k: Any, excess: Any) -> Any:
    """m, which makes the lowest limb of total + a b + m n zero, and what that limb carries on."""
    if a.lanes.holds == "int":
        t = mlo(total, a, b)
        m = mlo(t.like(0), t, k)
        t = mlo(t, m, n)
        return m, mhi(mhi(t >> 52, a, b), m, n)
    low, high = _halves(a, b)
    t = total.bits() + low
    t = t - t.like(excess) - LAST_BITS
    c = _signed(t + 2**50)
    m = fma(c, k, c.like(_TOP + _LAST) - fma(c, k, c.like(_TOP))) - _LAST
    low, more = _halves(m, n)
    t = t + low + (2**60 - LAST_BITS)
    return m, ((t >> 51) - 2**9 + high + more).double()


@traced
def row_step(total: Any, carried: Any, a: Any, b: Any, m: Any, n: Any) -> Any:
    """The next limb of total + a b + m n, and what it carries on."""
    if a.lanes.holds == "int":
        t = mlo(mlo(total + carried, a, b), m, n)
        return t, mhi(mhi(t.like(0), a, b), m, n)
    low, high = _halves(a, b)
    less, more = _halves(m, n)
    return (total.bits() + carried.bits() + low + less).double(), (high + more).double()


@traced
def tight(total: Any, carried: Any, excess: Any) -> Any:
    """A limb of the result from a sum, and what it carries on."""
    if total.lanes.holds == "int":
        t = total + carried
        return t & (2**52 - 1), t >> 52
    t = total.bits() + carried.bits()
    t = t - t.like(excess) + (2**60 + 2**50)
    return _signed(t), ((t >> 51) - 2**9).double()


@traced
def nothing(like: Any) -> Any:
    """The bits of zero."""
    return like.like(0)


@part
def times(a: Any, b: Any, out: Any, field: Any, work: Any) -> None:
    """out = a b / R modulo n; out may be a or b. work: (limbs, lanes), an even number of limbs."""
    n, k, each, last = field
    limbs = n.shape[0]
    zero = nothing(load(n, 0))
    for j in range(limbs):
        store(work, j, zero)
    for i in range(0, limbs, 2):
        # Two rows at once: the second takes each limb of the first as soon as it is there.
        digit, next_digit = load(a, i), load(a, i + 1)
        b_first, n_first, b_before, n_before = load(b, 0), load(n, 0), load(b, 1), load(n, 1)
        m, carried = row_start(load(work, 0), digit, b_first, n_first, load(k, 0), np.uint64(i) * each)
        total, carried = row_step(load(work, 1), carried, digit, b_before, m, n_before)
        excess = np.uint64(i + 1) * each
        next_m, next_carried = row_start(total, next_digit, b_first, n_first, load(k, 0), excess)
        for j in range(2, limbs):
            b_here, n_here = load(b, j), load(n, j)
            total, carried = row_step(load(work, j), carried, digit, b_here, m, n_here)
            total, next_carried = row_step(total, next_carried, next_digit, b_before, next_m, n_before)
            store(work, j - 2, total)
            b_before, n_before = b_here, n_here
        total, next_carried = row_step(carried, next_carried, next_digit, b_before, next_m, n_before)
        store(work, limbs - 2, total)
        store(work, limbs - 1, next_carried)
    carried = zero
    for j in range(limbs):
        limb, carried = tight(load(work, j), carried, last + np.uint64(limbs - 1 - j) * each)
        store(out, j, limb)


@part
def lay(row: Any, rows: Any, lane: int) -> None:
    """A number among those that `spread` takes."""
    for j in range(len(row)):
        rows[lane, j] = row[j]


@part
def spread(rows: Any, held: Any) -> None:
    """Numbers in rows (lanes, limbs) -> one to a lane (limbs, lanes)."""
    lanes, limbs = rows.shape
    whole = limbs - limbs % lanes
    for j in range(0, whole, lanes):
        turn(rows, j, limbs, held, lanes * j, lanes)
    for j in range(whole, limbs):
        for lane in range(lanes):
            held[j, lane] = rows[lane, j]


@part
def gather(held: Any, rows: Any) -> None:
    """What `spread` takes, from what it gives."""
    lanes, limbs = rows.shape
    whole = limbs - limbs % lanes
    for j in range(0, whole, lanes):
        turn(held, lanes * j, lanes, rows, j, limbs)
    for j in range(whole, limbs):
        for lane in range(lanes):
            rows[lane, j] = held[j, lane]


@kernel
def multiply(a: Any, b: Any, out: Any, field: Any, work: Any) -> None:
    """Row by row; a b of one row serves all. work: (3, limbs, lanes)."""
    lanes, last = work.shape[2], len(out) - 1
    rows = work[2].reshape((lanes, work.shape[1]))
    for at in range(0, len(out), lanes):
        for lane in range(lanes):
            lay(a[min(at + lane, last) if len(a) > 1 else 0], rows, lane)
        spread(rows, work[0])
        for lane in range(lanes):
            lay(b[min(at + lane, last) if len(b) > 1 else 0], rows, lane)
        spread(rows, work[1])
        times(work[0], work[1], work[0], field, work[2])
        gather(work[0], rows)
        for lane in range(min(lanes, len(out) - at)):
            out[at + lane] = rows[lane]


@kernel
def bucket_products(
    cells: Any, members: Any, begin: Any, end: Any, order: Any, one: Any, out: Any, field: Any, work: Any
) -> None:
    """out[b] = the product of cells[members[begin[b]:end[b]]], for each b of `order`; of none it is `one`."""
    lanes, last = work.shape[2], len(order) - 1
    rows = work[2].reshape((lanes, work.shape[1]))
    for at in range(0, len(order), lanes):
        most = 1
        for lane in range(lanes):
            b = order[min(at + lane, last)]
            most = max(most, end[b] - begin[b])
        for step in range(most):
            for lane in range(lanes):
                b = order[min(at + lane, last)]
                if begin[b] + step < end[b]:
                    lay(cells[members[begin[b] + step]], rows, lane)
                else:
                    lay(one[0], rows, lane)
            spread(rows, work[1 if step else 0])
            if step:
                times(work[0], work[1], work[0], field, work[2])
        gather(work[0], rows)
        for lane in range(min(lanes, len(order) - at)):
            out[order[at + lane]] = rows[lane]


@kernel
def fixed_powers(table: Any, digits: Any, out: Any, field: Any, work: Any) -> None:
    """out[i] = the product over w of table[w, digits[i, w]]."""
    lanes, last = work.shape[2], len(out) - 1
    rows = work[2].reshape((lanes, work.shape[1]))
    for at in range(0, len(out), lanes):
        for w in range(table.shape[0]):
            for lane in range(lanes):
                lay(table[w, digits[min(at + lane, last), w]], rows, lane)
            spread(rows, work[1 if w else 0])
            if w:
                times(work[0], work[1], work[0], field, work[2])
        gather(work[0], rows)
        for lane in range(min(lanes, len(out) - at)):
            out[at + lane] = rows[lane]


@kernel
def power(cells: Any, digits: Any, one: Any, out: Any, field: Any, work: Any) -> None:
    """cells[i] to the power whose 4-bit digits are digits[i], or for all digits[0], the highest first.

    work: (19, limbs, lanes).
    """
    lanes, last, shared = work.shape[2], len(out) - 1, len(digits) == 1
    rows = work[2].reshape((lanes, work.shape[1]))
    powers = work[3:]
    for at in range(0, len(out), lanes):
        for lane in range(lanes):
            lay(one[0], rows, lane)
        spread(rows, powers[0])
        for lane in range(lanes):
            lay(cells[min(at + lane, last)], rows, lane)
        spread(rows, powers[1])
        for k in range(2, 16):
            times(powers[k - 1], powers[1], powers[k], field, work[2])
        for w in range(digits.shape[1]):
            chosen = work[1 if w else 0]
            if shared:
                for j in range(work.shape[1]):
                    store(chosen, j, load(powers[digits[0, w]], j))
            else:
                for lane in range(lanes):
                    digit = digits[min(at + lane, last), w]
                    for j in range(work.shape[1]):
                        chosen[j, lane] = powers[digit, j, lane]
            if w:
                for _ in range(4):
                    times(work[0], work[0], work[0], field, work[2])
                times(work[0], work[1], work[0], field, work[2])
        gather(work[0], rows)
        for lane in range(min(lanes, len(out) - at)):
            out[at + lane] = rows[lane]


@kernel
def joined(cells: Any, each: int, shift: int, out: Any, field: Any, work: Any) -> None:
    """out[i] = the product over k < each of cells[i each + k] to the power 2^(shift k).

    work: (3, limbs, lanes).
    """
    lanes, last = work.shape[2], len(out) - 1
    rows = work[2].reshape((lanes, work.shape[1]))
    for at in range(0, len(out), lanes):
        for k in range(each - 1, -1, -1):
            for lane in range(lanes):
                lay(cells[min(at + lane, last) * each + k], rows, lane)
            spread(rows, work[0 if k == each - 1 else 1])
            if k < each - 1:
                for _ in range(shift):
                    times(work[0], work[0], work[0], field, work[2])
                times(work[0], work[1], work[0], field, work[2])
        gather(work[0], rows)
        for lane in range(min(lanes, len(out) - at)):
            out[at + lane] = rows[lane]


@kernel
def thaw(words: Any, bits: int, cells: Any) -> None:
    """Numbers below 2^(64 w) as limbs of `bits` bits; those of 51 bits signed. `cells` is uint64 or int64."""
    low, half = (_U1 << np.uint64(bits)) - _U1, _U1 << np.uint64(50)
    for row in range(len(words)):
        carried = _U1 - _U1
        for j in range(cells.shape[1]):
            at = bits * j
            word, shift = at >> 6, np.uint64(at & 63)
            limb = carried
            if word < words.shape[1]:
                found = words[row, word] >> shift
                if shift > _U64 - np.uint64(bits) and word + 1 < words.shape[1]:
                    found |= words[row, word + 1] << (_U64 - shift)
                limb += found & low
            if bits == 51:
                carried = (limb + half) >> np.uint64(51)
                cells[row, j] = np.int64(limb) - (np.int64(carried) << np.int64(51))
            else:
                cells[row, j] = np.int64(limb)


@kernel
def freeze(cells: Any, bits: int, n: Any, words: Any) -> None:
    """The words of the numbers from 0 to n - 1, from limbs (int64) that mean -n to 2 n - 1."""
    width = words.shape[1]
    for row in range(len(words)):
        for w in range(width):
            words[row, w] = 0
        carried = np.int64(0)
        for j in range(cells.shape[1]):
            limb = cells[row, j] + carried
            carried = limb >> np.int64(bits)
            digit = np.uint64(limb - (carried << np.int64(bits)))
            at = bits * j
            word, shift = at >> 6, np.uint64(at & 63)
            if word < width:
                words[row, word] |= digit << shift
            if shift > _U64 - np.uint64(bits) and word + 1 < width:
                words[row, word + 1] |= digit >> (_U64 - shift)
        if carried < 0:
            add(words[row], n, _U1 - _U1)
        elif at_least(words[row], n):
            add(words[row], n, _U1)


@part
def at_least(x: Any, n: Any) -> Any:
    for w in range(len(n) - 1, -1, -1):
        if x[w] != n[w]:
            return x[w] > n[w]
    return True


@part
def add(x: Any, n: Any, less: Any) -> None:
    """x += n, or x -= n where `less` is 1, as -n = ~n + 1; modulo the words that there are."""
    carried = less
    flip = _U1 - _U1 - less
    for w in range(len(n)):
        term = n[w] ^ flip
        total = x[w] + term
        over = _U1 if total < term else _U1 - _U1
        x[w] = total + carried
        carried = over | (_U1 if x[w] < carried else _U1 - _U1)
