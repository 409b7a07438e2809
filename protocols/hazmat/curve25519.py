"""Curve25519 for many points at once: X25519 with one scalar, Elligator 2, and which points are on the curve.

Each is the batch form of a scalar operation, and gives bit for bit what that gives: OpenSSL's X25519 through
`cryptography`, and for the map and the curve's equation Python's integers. Two kinds of arithmetic do the
work, and a CPU gets the one that it is faster with:

- `ifma`: eight points at a time in whole numbers, for CPUs with AVX512-IFMA;
- `fma`: four at a time in doubles, for those with AVX2 and FMA.

Both run on any CPU, slowly where its instructions are missing. No branch and no address depends on the
scalar, or on a coordinate but for points of small order, and no operation that they compile to is known to
take longer for some values; that is less than a promise about timing, since LLVM makes none. Hashing takes
longer for longer values.

`prepare` compiles, which takes seconds the first time on a machine, and then compares some results with the
library's. If they differ, or if numba fails, it warns once, and the library serves for the rest of the
process.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from numpy.typing import NDArray

from protocols.hazmat import blake2b, curve_kernels
from protocols.hazmat.compiled import keep_nothing, mark, marked
from protocols.hazmat.lanes import COUNT, has_ifma, host_has
from protocols.hazmat.prepared import Prepared

Field = Literal["ifma", "fma"]
Rows = NDArray[np.uint8]  # (n, 32): numbers of 255 bits, little-endian

P = 2**255 - 19
A = 486662
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
# Bit patterns at which arithmetic goes wrong if it goes wrong: ends of the range, second names, small orders
# (0, 1, p - 1, ORDER_8), the ignored bit 255, and limbs of 51 bits that are all ones or all zeros.
EDGES = tuple(
    value % 2**256
    for at in (0, P, 2**255, 2**255 + P, 2**256, 2**51, 2**102, 2**153, 2**204, 2**254, *ORDER_8)
    for value in (at - 1, at, at + 1)
) + tuple(2**255 - 1 - (2**51 - 1) * 2**k for k in (0, 51, 102, 153, 204))


def field_of_this_cpu() -> Field | None:
    """The kernels' arithmetic here; None where the library is faster."""
    if sys.byteorder != "little":
        return None
    if has_ifma():
        return "ifma"
    return "fma" if host_has("avx2", "fma") else None


def multiply(scalar: bytes, points: Rows, field: Field | None = None) -> Rows:
    """X25519 of one scalar of 32 bytes with each point; a row of zeros for a point of small order."""
    number = int.from_bytes(scalar, "little")
    number = number & ~7 & (2**255 - 1) | 2**254
    change = number ^ number >> 1  # bit i: whether it differs from the one above it
    masks = np.array([-(change >> i & 1) for i in reversed(range(255))], np.int64).view(np.uint64)
    return _run(lambda words, out, work: curve_kernels.multiply(words, masks, out, work), points, field)


def map_to_curve(elements: Rows, field: Field | None = None) -> Rows:
    """Elligator 2 of each field element (RFC 9380, section 6.7.1, Z = 2): the u-coordinate of the image."""
    return _run(curve_kernels.map_to_curve, elements, field)


def on_twist(points: Rows, field: Field | None = None) -> NDArray[np.bool_]:
    """Whether u^3 + A u^2 + u is no square, for each u: bool (n,)."""
    sign = _run(curve_kernels.squareness, points, field)
    twisted: NDArray[np.bool_] = sign[:, 31] == 0x7F  # of p - 1, against 0 and 1
    return twisted


def encode(
    key: bytes, person: bytes, data: Rows, offsets: NDArray[np.int64], field: Field | None = None
) -> Rows:
    """Elligator 2 of the keyed BLAKE2b, modulo p, of each value data[offsets[i] : offsets[i + 1]]."""
    elements = blake2b.hash_to_field(key, person, data, offsets)
    return map_to_curve(elements.view(np.uint8).reshape(-1, 32), field)


def _run(kernel: Callable[..., None], rows: Rows, field: Field | None) -> Rows:
    field = field or field_of_this_cpu() or "fma"
    lanes = COUNT["int" if field == "ifma" else "float"]
    padded = np.zeros((-(-len(rows) // lanes) * lanes, 32), np.uint8)
    padded[: len(rows)] = rows
    words, out = padded.view(np.uint64), np.empty((len(padded), 4), np.uint64)
    kind = np.uint64 if field == "ifma" else np.float64
    kernel(words, out, np.empty((3 * curve_kernels.GROUP, 5, lanes), kind))
    return out.view(np.uint8)[: len(rows)]


def prepare() -> Prepared:
    """Have the kernels ready to run and compared with the library. Safe to call from many threads.

    Seconds where numba compiles (the first time on a machine, after an update), tenths of one afterwards.
    """
    started = time.perf_counter()
    with _turn:
        if _state.by is not None:
            return Prepared(_state.by, time.perf_counter() - started, "there already")
        misses = _misses()
        _state.by = _checked(field_of_this_cpu() or "fma")
        compiled = _misses() > misses
        if _state.by != "library":
            mark(_state.by)
    return Prepared(_state.by, time.perf_counter() - started, "compiled" if compiled else "read from disk")


def serves() -> bool:
    """Whether `prepare` was called in this process, and the kernels passed."""
    return _state.by not in (None, "library")


def prepared_before() -> bool:
    """Whether `prepare` will probably not have to compile: it did in this process, or on this machine."""
    return _state.by is not None or marked(field_of_this_cpu() or "fma")


@dataclass
class _State:
    by: Field | Literal["library"] | None = None


_state = _State()
_turn = threading.Lock()


def _misses() -> int:
    kernels: list[Any] = [
        blake2b.hash_values,
        curve_kernels.multiply,
        curve_kernels.map_to_curve,
        curve_kernels.squareness,
    ]
    return sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)


def _checked(field: Field) -> Field | Literal["library"]:
    try:
        try:
            wrong = _differences(field)
        except OSError:  # a full disk: what was compiled cannot be kept, but it can be used
            keep_nothing()
            wrong = _differences(field)
    except Exception as error:  # numba's and LLVM's are of many kinds, and none should cost a user the run
        wrong = [f"{type(error).__name__}"]
    if not wrong:
        return field
    warnings.warn(
        f"the compiled kernels ({field}) failed their comparison with the library, which serves in "
        f"their place, slower: {', '.join(wrong)}; VFL_KERNELS=off avoids this",
        RuntimeWarning,
        stacklevel=4,
    )
    return "library"


def _differences(field: Field) -> list[str]:
    """The kernels that do not give what the library gives, on edges and random values."""
    values = [*EDGES, *(secrets.randbits(256) for _ in range(64))]
    rows = np.frombuffer(b"".join(value.to_bytes(32, "little") for value in values), np.uint8).reshape(-1, 32)
    scalar, key, person = secrets.token_bytes(32), secrets.token_bytes(32), b"self-test"
    texts = [secrets.token_bytes(size) for size in (0, 1, 8, 127, 128, 129, 256, 300)]
    ends = np.cumsum([0, *map(len, texts)])
    hashed = blake2b.hash_to_field(key, person, np.frombuffer(b"".join(texts), np.uint8), ends)
    results = {
        "X25519": (
            multiply(scalar, rows, field).tobytes(),
            [_exchange(scalar, row.tobytes()) for row in rows],
        ),
        "Elligator 2": (map_to_curve(rows, field).tobytes(), [_number(_map(v % 2**255)) for v in values]),
        "the curve's equation": (
            on_twist(rows, field).tobytes(),
            [bytes([_twisted(v % 2**255)]) for v in values],
        ),
        "BLAKE2b": (hashed.tobytes(), [_number(_hash(key, person, text)) for text in texts]),
    }
    return [name for name, (here, there) in results.items() if here != b"".join(there)]


def _exchange(scalar: bytes, point: bytes) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:  # the product is zero
        return bytes(32)


def _number(value: int) -> bytes:
    return value.to_bytes(32, "little")


def _twisted(u: int) -> bool:
    return pow(u * (u * u + A * u + 1), P // 2, P) == P - 1


def _map(r: int) -> int:
    u = -A * pow(1 + 2 * r * r, -1, P) % P
    return (-u - A) % P if _twisted(u) else u


def _hash(key: bytes, person: bytes, value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, key=key, person=person).digest(), "little") % P
