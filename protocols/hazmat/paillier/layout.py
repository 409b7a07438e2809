"""How numbers share plaintexts, and how large their integers can have become.

No party: what everybody may know of an encrypted array. A `Layout` is its shape, its scale, how it is packed,
and a bound on its integers. The bound follows from declared limits and from how many rows there are, never
from values, so it tells nothing; and because it is known before anything is computed, a sum that could run
out of its slot is refused instead of running over into the next one.

A plaintext of several slots is v_0 + v_1 2^width + v_2 2^(2 width) + ..., each v signed: adding plaintexts
adds slot by slot, and half a slot added to each before it is cut apart undoes the borrows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import gmpy2
import numpy as np

from protocols.errors import ConfigError, DataError, ProtocolError
from protocols.hazmat.paillier.fixed import SMALL, Array, Encoded, Fixed, objects

Header = dict[str, Any]  # of JSON values, beside the words in a message
_MOST_BITS = 8192


@dataclass(frozen=True)
class Layout:
    """What is public about an encrypted array.

    A value is integer * 2**-bits, with |integer| <= bound < 2**(width - 1). With several slots the last axis
    is packed: each of its runs of `slots` values shares one plaintext.
    """

    shape: tuple[int, ...]
    bits: int
    bound: int
    width: int  # bits of one slot, its sign among them
    slots: int = 1

    @property
    def capacity(self) -> int:
        """The largest bound that a slot has room for."""
        return int(2 ** (self.width - 1)) - 1

    @property
    def grid(self) -> tuple[int, ...]:
        """How the plaintexts are arranged: `shape`, with the last axis packed."""
        if self.slots == 1:
            return self.shape
        return (*self.shape[:-1], -(-self.shape[-1] // self.slots))

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes along which one may index and sum: all, but for a packed one."""
        return self.shape if self.slots == 1 else self.shape[:-1]

    @property
    def count(self) -> int:
        """How many plaintexts there are."""
        return prod(self.grid)

    def pack(self, ints: Array) -> list[int]:
        """The signed plaintexts, in C order, of integers that have (or broadcast to) this shape."""
        ints = stretched(ints, self.shape)
        if self.slots == 1:
            return [int(value) for value in ints.ravel().tolist()]
        # Of objects these are Python's zeros, where np.pad would put numpy's among them, which overflow.
        padded = np.zeros((*self.shape[:-1], self.grid[-1] * self.slots), ints.dtype)
        padded[..., : self.shape[-1]] = ints
        half, base = 2 ** (self.width - 1), self._base()
        rows = padded.reshape(self.count, self.slots).tolist()
        return [int(gmpy2.pack([value + half for value in row], self.width)) - base for row in rows]

    def unpack(self, plain: Sequence[int]) -> Array:
        """The integers in these plaintexts. DataError if they are not what this layout says."""
        half, base, slots = 2 ** (self.width - 1), self._base(), self.slots
        values: list[int] = []
        for whole in plain:
            shifted = whole + base
            if not 0 <= shifted < 2 ** (self.width * slots):
                raise _misfit()
            parts = gmpy2.unpack(gmpy2.mpz(shifted), self.width) if slots > 1 else [shifted]
            values += (int(part) - half for part in parts)
            values += [-half] * (slots - len(parts))  # leading zeros
        small = self.bound < SMALL
        try:
            ints = np.array(values, dtype=np.int64 if small else object)
        except OverflowError:
            raise _misfit() from None
        ints = self.arranged(ints)
        if ints.size and not (-self.bound <= ints.min() and ints.max() <= self.bound):
            raise _misfit()
        return ints

    def arranged(self, values: Array) -> Array:
        """One value for each slot of each plaintext, in `shape`: without those of blank slots."""
        if self.slots > 1:
            values = values.reshape(*self.grid[:-1], self.grid[-1] * self.slots)[..., : self.shape[-1]]
        return values.reshape(self.shape)

    def decode(self, ints: Array) -> Array:
        """Numbers: float64 (nearest) where there are fraction bits, else int64, or objects beyond it."""
        if self.bits <= 0:
            whole = np.asarray(ints if self.bits == 0 else objects(ints) * 2**-self.bits)
            return whole.astype(np.int64) if self.bound << -self.bits < 2**63 else objects(whole)
        if self.bound < 2**53 and self.bits <= 1000:
            return np.ldexp(ints.astype(np.float64), -self.bits)
        try:  # the quotient of two Python integers is correctly rounded
            values = [value / (1 << self.bits) for value in ints.ravel().tolist()]
        except OverflowError:
            raise DataError("a result is too large for a float; use a smaller limit or fewer terms") from None
        return np.array(values, dtype=np.float64).reshape(ints.shape)

    def _base(self) -> int:
        half = 2 ** (self.width - 1)
        return sum(half << (self.width * slot) for slot in range(self.slots))


def stretched(ints: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast, as numpy does it. ConfigError if the shapes do not go together."""
    try:
        return np.broadcast_to(ints, shape)
    except ValueError:
        raise ConfigError(f"numbers of shape {list(ints.shape)} do not fit {list(shape)}") from None


def product(layout: Layout, factors: Encoded, verb: str, terms: int) -> Layout:
    bound = layout.bound * factors.fixed.bound * (terms or 1)
    return roomy(layout, verb, bound=bound, bits=layout.bits + factors.fixed.bits)


def roomy(layout: Layout, verb: str, **changes: Any) -> Layout:
    made = replace(layout, **changes)
    if made.bound > made.capacity:
        over = (made.bound + 1).bit_length() + 1 - made.width
        raise ConfigError(
            f"{verb} could overflow: its result needs {over} bits more than the {made.width} of a value "
            "here; announce the sum by terms= (and times=) when encrypting, or use fewer fraction bits"
        )
    return made


def plan(shape: tuple[int, ...], fixed: Fixed, room: int, terms: int | None, times: Fixed | None) -> Layout:
    """How an array is laid out in plaintexts of `room` bits. ConfigError if one value does not fit."""
    if times is not None and terms is None:
        raise ConfigError("times= says by what packed values are multiplied; give terms= too")
    if terms is None:
        layout = Layout(shape, fixed.bits, fixed.bound, room)
        need = fixed.bound.bit_length() + 1
    else:
        if terms < 1 or not shape:
            raise ConfigError(
                f"terms={terms} for shape {list(shape)}: expected at least 1, and an axis to pack"
            )
        largest = fixed.bound * terms * (1 if times is None else times.bound)
        need = largest.bit_length() + 1
        slots = max(1, min(room // need, shape[-1]))
        layout = Layout(shape, fixed.bits, fixed.bound, need, slots)
    if need > room:
        raise ConfigError(
            f"a value needs {need} bits and a plaintext of this key has {room}: use fewer fraction bits, "
            "smaller limits or a longer key"
        )
    return layout


def read_header(head: Header, fingerprint: str, room: int) -> Layout:
    """The layout in a peer's header. ProtocolError if it is none, or of another key."""
    try:
        shape, bits, width, slots = head["shape"], head["bits"], head["width"], head["slots"]
        bound = int(head["bound"], 16) if len(head["bound"]) <= _MOST_BITS // 4 + 3 else -1
        key = head["key"]
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("an encrypted array came without a header that can be read") from None
    if key != fingerprint:
        raise ProtocolError("an encrypted array came under another key than the one agreed on")
    numbers = [bits, width, slots, *shape] if isinstance(shape, list) else [None]
    whole = all(type(number) is int for number in numbers)
    if not whole or not all(_sane(*shape, bits=bits, bound=bound, width=width, slots=slots, room=room)):
        raise ProtocolError("an encrypted array came with a header that no array has")
    return Layout(tuple(shape), bits, bound, width, slots)


def _sane(*shape: int, bits: int, bound: int, width: int, slots: int, room: int) -> Iterator[bool]:
    yield len(shape) <= 8 and all(0 <= size < 2**40 for size in shape) and prod(shape) < 2**40
    # Of nothing, sums along another axis would still make as many results as the header says.
    yield 0 not in shape or prod(size or 1 for size in shape) <= 2**20
    yield -_MOST_BITS <= bits <= _MOST_BITS
    yield slots >= 1 and width >= 2 and slots * width <= room
    yield slots == 1 or (len(shape) > 0 and slots <= shape[-1])
    yield bound >= 1 and bound < 2 ** (width - 1)


def header(layout: Layout, fingerprint: str) -> Header:
    """As JSON values; the bound as a hexadecimal string, since it may exceed what JSON readers keep exact."""
    return {
        "key": fingerprint,
        "shape": list(layout.shape),
        "bits": layout.bits,
        "bound": hex(layout.bound),
        "width": layout.width,
        "slots": layout.slots,
    }


def _misfit() -> DataError:
    return DataError("what was decrypted is not what its header declares: another key, or altered on the way")
