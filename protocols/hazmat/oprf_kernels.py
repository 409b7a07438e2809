"""BLAKE2s of many values, a cuckoo table, equal rows and a bit matrix's transposition, compiled by numba.

Import it only where sets are large (`protocols.hazmat.oprf_switch`): numba takes a second to load, and the
first call on a machine compiles. BLAKE2s works on sixteen values side by side, one in each lane of vectors
that LLVM cuts to whatever width the CPU has. It branches on a value's length and on nothing else of it, and
not on the key. `insert` branches on hashes of ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from protocols.hazmat import cuckoo
from protocols.hazmat.compiled import kernel, part

_IV = np.array(
    [
        0x6A09E667,
        0xBB67AE85,
        0x3C6EF372,
        0xA54FF53A,
        0x510E527F,
        0x9B05688C,
        0x1F83D9AB,
        0x5BE0CD19,
    ],
    np.uint32,
)
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
_MIXED = [(i, i + 4, i + 8, i + 12) for i in range(4)] + [
    (i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12) for i in range(4)
]
_LANES = 16
_VECTOR = ir.VectorType(ir.IntType(32), _LANES)
_ALL = np.uint32(0xFFFFFFFF)


def hash_values(
    start: NDArray[np.uint32],
    key: NDArray[np.uint32],
    salts: NDArray[np.uint32],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    size: int,
) -> NDArray[np.uint32]:
    """BLAKE2s of each value data[offsets[i] : offsets[i + 1]], none of them empty: uint32 (n, size / 4).

    start: uint32 (8,), the hash's parameters; key: uint32 (16,), a block before every value, or (0,); salts:
    uint32 (n, 2), or (0, 2) for none.
    """
    out = np.empty((len(offsets) - 1, size // 4), np.uint32)
    _hash_values(_given(_IV ^ start), _given(key), _given(salts), _given(data), _given(offsets), out)
    return out


def insert(bins: NDArray[np.int32], table: NDArray[np.int32], moves: int) -> bool:
    """`cuckoo.insert`."""
    return bool(_insert(_given(bins), table, moves))


def find(own: NDArray[np.uint8], asked: NDArray[np.uint8]) -> NDArray[np.int32]:
    """`equal_rows.find`."""
    found = np.empty(len(asked), np.int32)
    slots = np.full(1 << (2 * len(own)).bit_length(), -1, np.int32)
    _find(_given(own), _given(asked), slots, found)
    return found


def transpose(columns: NDArray[np.uint64], rows: NDArray[np.uint64]) -> None:
    """`oblivious.as_rows`, into rows."""
    _transpose(_given(columns), rows)


def _given(array: NDArray[Any]) -> NDArray[Any]:
    """As an argument: contiguous and read-only. numba compiles once for each kind of array."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


@intrinsic
def _round(context: Any, v: Any, m: Any, order: Any) -> Any:
    """One of the ten rounds, in all lanes: v, uint32 (16, 16), by the words of m, uint32 (16, 16), taken in
    an order, int64 (16,). A row of v or m is one vector. Loops over lanes, left to LLVM to make vectors of,
    are as fast but take three times as long to compile.
    """

    def lower(context: Any, build: Any, signature: Any, values: Any) -> Any:
        starts = [
            context.make_array(kind)(context, build, value).data
            for kind, value in zip(signature.args, values, strict=True)
        ]
        rows = [build.bitcast(start, _VECTOR.as_pointer()) for start in starts[:2]]
        places = [build.gep(rows[0], [ir.IntType(64)(i)]) for i in range(16)]
        words = [build.load(build.gep(starts[2], [ir.IntType(64)(i)])) for i in range(16)]
        state = [_aligned(build.load(place)) for place in places]
        for i, (a, b, c, d) in enumerate(_MIXED):
            x, y = (_aligned(build.load(build.gep(rows[1], [words[2 * i + half]]))) for half in (0, 1))
            _mix(build, state, (a, b, c, d), (x, y))
        for value, place in zip(state, places, strict=True):
            _aligned(build.store(value, place))
        return context.get_dummy_value()

    return types.void(v, m, order), lower


def _aligned(access: Any) -> Any:
    access.align = 4  # what numpy promises for uint32
    return access


def _mix(build: Any, state: list[Any], places: tuple[int, int, int, int], words: tuple[Any, Any]) -> None:
    """G of RFC 7693, section 3.1."""
    a, b, c, d = places
    for word, first, second in ((words[0], 16, 12), (words[1], 8, 7)):
        state[a] = build.add(build.add(state[a], state[b]), word)
        state[d] = _rotated(build, build.xor(state[d], state[a]), first)
        state[c] = build.add(state[c], state[d])
        state[b] = _rotated(build, build.xor(state[b], state[c]), second)


def _rotated(build: Any, value: Any, by: int) -> Any:
    right, left = (ir.Constant(_VECTOR, [count] * _LANES) for count in (by, 32 - by))
    return build.or_(build.lshr(value, right), build.shl(value, left))


@part
def _rounds(h: Any, v: Any, m: Any, lengths: Any, last: Any) -> None:
    """F of section 3.2 without its end: v from h, after ten rounds of m. lengths, last: uint32 (16,)."""
    for i in range(_LANES):
        for word in range(8):
            v[word, i] = h[word, i]
            v[word + 8, i] = _IV[word]
        v[12, i] ^= lengths[i]
        v[14, i] ^= last[i]
    for r in range(10):
        _round(v, m, _SIGMA[r])


@intrinsic
def _word(context: Any, data: Any, at: Any) -> Any:
    """Four bytes from place `at` of uint8 (size,) on, as a little-endian word."""

    def lower(context: Any, build: Any, signature: Any, values: Any) -> Any:
        start = context.make_array(signature.args[0])(context, build, values[0]).data
        word = build.load(build.bitcast(build.gep(start, [values[1]]), ir.IntType(32).as_pointer()))
        word.align = 1
        return word

    return types.uint32(data, types.intp), lower


@part
def _load(data: Any, at: int, size: int, m: Any, lane: int) -> None:
    """Up to 64 bytes into a lane's block, with zeros behind them."""
    for word in range(16):
        value = np.uint32(0)
        left = size - 4 * word
        o = at + 4 * word
        if left >= 4:
            value = _word(data, o)
        else:
            for byte in range(left):
                value = np.uint32(value | np.uint32(data[o + byte]) << np.uint32(8 * byte))
        m[word, lane] = value


@kernel
def _hash_values(start: Any, key: Any, salts: Any, data: Any, offsets: Any, out: Any) -> None:
    n, before = len(offsets) - 1, 4 * len(key)
    begun = start.copy()
    h, v = np.empty((8, _LANES), np.uint32), np.empty((16, _LANES), np.uint32)
    m = np.zeros((16, _LANES), np.uint32)
    lengths, last = np.full(_LANES, np.uint32(64)), np.zeros(_LANES, np.uint32)
    for word in range(len(key)):
        m[word] = key[word]
    # The first turn is the key's block, the same for all. `_rounds` is called in one place only, since it is
    # what takes long to compile.
    for at in range(-_LANES if before else 0, n, _LANES):
        here = min(_LANES, n - at) if at >= 0 else _LANES
        longest = 1
        for i in range(_LANES):
            for word in range(8):
                h[word, i] = begun[word]
            if at >= 0 and i < here:
                longest = max(longest, offsets[at + i + 1] - offsets[at + i])
                if len(salts):
                    h[4, i] ^= salts[at + i, 0]
                    h[5, i] ^= salts[at + i, 1]
        for done in range(0, longest, 64):
            if at >= 0:
                for i in range(here):
                    size = offsets[at + i + 1] - offsets[at + i]
                    part = max(0, min(64, size - done))
                    _load(data, offsets[at + i] + done, part, m, i)
                    lengths[i] = np.uint32(before + done + part)
                    last[i] = _ALL if size <= done + 64 else np.uint32(0)
            _rounds(h, v, m, lengths, last)
            for i in range(here):
                if at < 0 or offsets[at + i + 1] - offsets[at + i] > done:
                    for word in range(8):
                        h[word, i] ^= v[word, i] ^ v[word + 8, i]
        if at < 0:
            begun[:] = h[:, 0]
        for i in range(here if at >= 0 else 0):
            for word in range(out.shape[1]):
                out[at + i, word] = h[word, i]


_insert = kernel(cuckoo.insert)


@kernel
def _transpose(columns: Any, rows: Any) -> None:
    groups, w = columns.shape[0] // 64, columns.shape[1]
    block = np.zeros((64, 8), np.uint64)  # eight words of a column are a line of the cache
    for at in range(0, w, 8):
        here = min(8, w - at)
        for group in range(groups):
            for i in range(64):
                for word in range(here):
                    block[i, word] = columns[64 * group + i, at + word]
            width, mask = 32, np.uint64(0xFFFFFFFF)
            while width:
                shift = np.uint64(width)
                for i in range(64):
                    if i & width == 0:
                        for word in range(8):
                            moved = ((block[i, word] >> shift) ^ block[i + width, word]) & mask
                            block[i + width, word] ^= moved
                            block[i, word] ^= moved << shift
                width //= 2
                mask ^= mask << np.uint64(max(width, 1))
            for word in range(here):
                for i in range(64):
                    rows[64 * (at + word) + i, group] = block[i, word]


@part
def _slot(row: Any, mask: int) -> Any:
    return np.int64(_word(row, 0)) & mask


@kernel
def _find(own: Any, asked: Any, slots: Any, found: Any) -> None:
    """slots: int32, all -1, a power of two above n. The rows are uniform, and stand for their own hash."""
    mask, width = len(slots) - 1, own.shape[1]
    for row in range(len(own)):
        at = _slot(own[row], mask)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = row
    for row in range(len(asked)):
        at = _slot(asked[row], mask)
        found[row] = -1
        while slots[at] >= 0:
            same = True
            for byte in range(width):
                if own[slots[at], byte] != asked[row, byte]:
                    same = False
                    break
            if same:
                found[row] = slots[at]
                break
            at = (at + 1) & mask
