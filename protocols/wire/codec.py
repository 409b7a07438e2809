"""Message <-> bytes. No party: the boundary where foreign bytes come in.

    body = header length (uint32, little-endian) | JSON header | buffers, each padded to 16 bytes

The header maps each field to its JSON value, or to `{"$": [dtype, shape]}` for an array,
`{"$named": [[name, dtype, shape], ...]}` for `Arrays`, `{"$bytes": n}` for bytes; the buffers follow
in the same order, little-endian, C order. Decoding runs no code of the sender's (never pickle):
any bytes decode to a Message or raise ProtocolError, and nothing larger than the body itself
is ever allocated, because sizes are checked against what is there before an array is made.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isfinite, prod
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, ProtocolError
from protocols.wire.message import Message

M = TypeVar("M", bound=Message)
_WIDTHS = ("<f2", "<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "?")
DTYPES = {np.dtype(width).str: np.dtype(width) for width in _WIDTHS}
_CODES = {form: code for code, d in DTYPES.items() for form in (d, d.newbyteorder(">"))}
_SCALARS = frozenset((int, float, str, bool, type(None)))
_JSON = json.JSONEncoder(separators=(",", ":")).encode
_PADDING = bytes(16)
MAX_HEADER = 1 << 20  # bytes: 17,000 named arrays fit; as Python objects JSON takes up to 28 times that
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40  # of one dimension: numpy's own arithmetic stays far from overflow
_LENGTH = struct.Struct("<I")


def encode(message: Message) -> bytes:
    """Encode `message` as a body. Raises ConfigError if a field holds what the wire does not carry."""
    buffers: list[Array | bytes] = []
    kind = type(message)
    head = [(name, _plain(value, buffers, kind, name)) for name, value in message.__dict__.items()]
    # Shapes recur from batch to batch; values do not (and 1 == True would share an entry).
    header = _header(tuple(head)) if all(type(v) is _Tag for _, v in head) else _dump(head)
    parts: list[Array | bytes] = [header]
    for buffer in buffers:
        parts.append(buffer)
        size = len(buffer) if isinstance(buffer, bytes) else buffer.nbytes
        if size % 16:
            parts.append(_PADDING[: -size % 16])
    return b"".join(parts)  # type: ignore[arg-type]  # arrays are buffers, the stubs do not say so


def _dump(head: Sequence[tuple[str, Any]]) -> bytes:
    try:
        # Only values are written anew: names and shapes recur from message to message.
        said = [_key(name) + (_text(value) if type(value) is _Tag else _value(value)) for name, value in head]
        header = f"{{{','.join(said)}}}".encode()
    except (TypeError, ValueError, RecursionError) as error:
        names = ", ".join(name for name, _ in head)
        raise ConfigError(f"fields {names}: not what the wire carries: {error}") from None
    if len(header) > MAX_HEADER - 16:
        raise ConfigError(f"a header of {len(header)} bytes, at most {MAX_HEADER} may be sent; use arrays")
    header += b" " * (-(4 + len(header)) % 16)
    return _LENGTH.pack(len(header)) + header


_header = lru_cache(maxsize=512)(_dump)


def _value(value: Any) -> str:
    # What json would write, at a fifth of its time.
    if type(value) is int or (type(value) is float and isfinite(value)):
        return repr(value)
    return _JSON(value)


@lru_cache(maxsize=512)
def _key(name: str) -> str:
    return _JSON(name) + ":"


class _Tag(dict[str, Any]):
    """A header entry that can be remembered by its content."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


@lru_cache(maxsize=512)
def _text(tag: _Tag) -> str:
    return _JSON(tag)


def _plain(value: Any, buffers: list[Array | bytes], kind: type[Message], name: str) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, np.ndarray):
        return _Tag({"$": _array(value, buffers, kind, name)})
    if isinstance(value, Arrays):
        arrays = ((n, *_array(a, buffers, kind, f"{name}[{n!r}]")) for n, a in value.items())
        return _Tag({"$named": tuple(arrays)})
    if isinstance(value, bytes):
        buffers.append(value)
        return _Tag({"$bytes": len(value)})
    if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
        raise ConfigError(f"{kind.__name__}.{name}: keys of a mapping may not begin with '$'")
    return value


def _array(
    value: Array, buffers: list[Array | bytes], kind: type[Message], name: str
) -> tuple[str, tuple[int, ...]]:
    code = _CODES.get(value.dtype)
    if code is None:
        raise ConfigError(f"{kind.__name__}.{name}: {value.dtype} arrays do not cross the wire")
    buffers.append(value.astype(DTYPES[code], order="C", copy=False))
    return code, value.shape


def decode(kind: type[M], body: bytes, *, sender: str = "", scope: str = "") -> M:
    """Decode the message of class `kind` in `body`; its arrays are read-only views of `body`."""
    try:
        return kind(**_fields(body))
    except ProtocolError as error:
        reason = str(error)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:3]
        reason = "; ".join(f"{_place(kind, e['loc'])}: {e['msg']}" for e in found)
    except RecursionError:
        reason = "it is nested too deeply"
    raise ProtocolError(f"{kind.kind} from {sender or 'unknown'} in {scope!r}: {reason}")


def _place(kind: type[Message], loc: tuple[int | str, ...]) -> str:
    """Say where an error is, in our own names only: foreign fields and keys are the sender's values."""
    if not loc:
        return "fields"
    return f"field {loc[0]}" if loc[0] in kind.model_fields else "a field it does not have"


def _fields(body: bytes) -> dict[str, Any]:
    if len(body) < 4:
        raise ProtocolError(f"{len(body)} bytes are no message")
    (length,) = _LENGTH.unpack_from(body)
    if length > MAX_HEADER or 4 + length > len(body):
        raise ProtocolError(f"header of {length} bytes in a body of {len(body)}")
    header = body[4 : 4 + length]
    plan, size = _plan(header) if length <= 1024 else _parse(header)
    if 4 + length + size != len(body):
        raise ProtocolError(f"{size} bytes announced, {len(body) - 4 - length} came")
    fields: dict[str, Any] = {}
    for name, how, what in plan:
        if how == "$":
            fields[name] = _view(body, 4 + length, what)
        elif how == "$named":
            fields[name] = Arrays.of({n: _view(body, 4 + length, entry) for n, entry in what})
        elif how == "$bytes":
            start = 4 + length + what[0]
            fields[name] = body[start : start + what[1]]
        else:
            # The cache holds the text, not the value: a list in it may be changed by a role.
            fields[name] = json.loads(what) if how == "json" else what
    return fields


def _view(body: bytes, start: int, entry: tuple[int, np.dtype[Any], tuple[int, ...], int]) -> Array:
    offset, dtype, shape, count = entry
    array = np.frombuffer(body, dtype, count, start + offset).reshape(shape)
    if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise ProtocolError("a truth value that is neither 0 nor 1")
    return array


def _parse(header: bytes) -> tuple[list[tuple[str, str, Any]], int]:
    """Parse the header into (field, how, where) for each field, and the buffers' total size."""
    try:
        head = json.loads(header, object_pairs_hook=_once)
    except ProtocolError:
        raise
    except (ValueError, RecursionError):
        raise ProtocolError("the header is not JSON") from None
    if not isinstance(head, dict):
        raise ProtocolError("the header is not a mapping")
    plan: list[tuple[str, str, Any]] = []
    offset = 0
    for name, value in head.items():
        how = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else ""
        if how == "$":
            entry, offset = _claim(value[how], offset)
            plan.append((name, how, entry))
        elif how == "$named":
            entries, offset = _claims(value[how], offset)
            plan.append((name, how, entries))
        elif how == "$bytes":
            size = _whole(value[how], 1 << 62)
            plan.append((name, how, (offset, size)))
            offset += size + -size % 16
        elif isinstance(value, (dict, list)):
            plan.append((name, "json", json.dumps(value)))
        else:
            plan.append((name, "", value))
    return plan, offset


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("a name comes twice in the header")
    return found


_plan = lru_cache(maxsize=512)(_parse)


def _claims(value: Any, offset: int) -> tuple[list[tuple[str, Any]], int]:
    if not isinstance(value, list):
        raise ProtocolError("named arrays are no list")
    entries: list[tuple[str, Any]] = []
    for item in value:
        if not isinstance(item, list) or len(item) != 3 or not isinstance(item[0], str):
            raise ProtocolError("a named array is not [name, dtype, shape]")
        entry, offset = _claim(item[1:], offset)
        entries.append((item[0], entry))
    if len({name for name, _ in entries}) != len(entries):
        raise ProtocolError("an array's name comes twice")
    return entries, offset


def _claim(value: Any, offset: int) -> tuple[tuple[int, np.dtype[Any], tuple[int, ...], int], int]:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
        raise ProtocolError("an array is not [dtype, shape]")
    code, sizes = value
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None or len(sizes) > MAX_DIMENSIONS:
        raise ProtocolError("an array of an unknown dtype, or of too many dimensions")
    shape = tuple(_whole(size, MAX_SIZE) for size in sizes)
    count = prod(shape)
    if prod(size for size in shape if size) * dtype.itemsize > 1 << 62:
        raise ProtocolError("an array larger than any memory")
    nbytes = count * dtype.itemsize
    return (offset, dtype, shape, count), offset + nbytes + -nbytes % 16


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ProtocolError("a size that is no whole number in range")
    return value
