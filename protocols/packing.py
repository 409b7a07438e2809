"""A dataclass of arrays and JSON values as a tree of JSON and arrays by name, and back again.

No party: one party's own part of a model, on its way to its own disk. A tree names no code: the type of each
field says how it is read, so that whatever lies on disk becomes a value of that type, or is a DataError.

In a tree an array is its shape and lies among the arrays under its path, as `learnt.forest.roots`; truth
values lie there as bits. `Arrays` and networks are the names of their arrays. A number that JSON cannot write
(inf, nan) is its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from torch import nn

from protocols.arrays import Array, Arrays, prefixed
from protocols.errors import ConfigError, DataError
from protocols.flops import copied

T = TypeVar("T")


class Stored(nn.Module):
    """The weights of a network whose code is elsewhere, as they are read: see `filled`."""

    def __init__(self, weights: Arrays) -> None:
        super().__init__()
        self.weights = weights


def filled(stored: nn.Module, module: nn.Module) -> nn.Module:
    """A copy of `module` with the weights that were stored. ConfigError where it is of another shape."""
    assert isinstance(stored, Stored)
    made = copied(module)
    try:
        stored.weights.load_into(made)
    except DataError as error:
        raise ConfigError(f"the run does not fit the model: {error}; bring the saved one") from None
    return made


def pack(value: object) -> tuple[Any, dict[str, Array]]:
    """Convert `value` to a tree and the arrays it names. Values that JSON lacks stay in it unchanged."""
    arrays: dict[str, Array] = {}
    return _packed(value, "", arrays), arrays


def unpack(kind: type[T], tree: object, arrays: Mapping[str, Array]) -> T:
    """Rebuild the `kind` that was packed. Raises DataError, saying where, if the tree or arrays do not fit.

    A network comes back as `Stored`.
    """
    reader = _Reader(arrays)
    made = reader.read(kind, tree, "")
    if unread := sorted(arrays.keys() - reader.seen):
        raise DataError(f"{len(unread)} arrays belong to nothing: {', '.join(unread[:3])}")
    return cast(T, made)


def _packed(value: Any, path: str, arrays: dict[str, Array]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, nn.Module):
        value = value.weights if isinstance(value, Stored) else Arrays.from_module(value)
    if isinstance(value, Arrays):
        arrays |= prefixed(path, value)
        return list(value)
    if isinstance(value, np.ndarray):
        is_bits = value.dtype == np.bool_
        arrays[path] = np.packbits(value) if is_bits else value
        return {"bits": list(value.shape)} if is_bits else list(value.shape)
    if is_dataclass(value):
        return {
            one.name: _packed(getattr(value, one.name), _below(path, one.name), arrays)
            for one in fields(value)
        }
    if isinstance(value, Mapping):
        return {name: _packed(each, _below(path, name), arrays) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(each, _below(path, at), arrays) for at, each in enumerate(value)]
    return value


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


class _Reader:
    """Reads values of given types, and remembers which arrays they took."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays, self.seen = arrays, set[str]()

    def read(self, kind: Any, node: Any, path: str) -> Any:
        """Read a value of type `kind` from the tree `node`."""
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any:
            return node
        if origin in (Union, UnionType):
            return self._first(inner, node, path)
        if origin is Literal:
            return _checked(node in inner, node, kind, path)
        if origin is np.ndarray:
            return self._array(node, path)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return Stored(self.read(Arrays, node, path))
        if kind is Arrays:
            names = [*self._list(str, node, path)]
            return Arrays((name, self._take(_below(path, name))) for name in names)
        if is_dataclass(kind):
            return self._dataclass(cast(type, kind), node, path)
        if origin is not None and issubclass(origin, Mapping):
            _checked(isinstance(node, dict), node, kind, path)
            return {name: self.read(inner[1], each, _below(path, name)) for name, each in node.items()}
        if origin is not None and issubclass(origin, Sequence):
            return (list if origin is list else tuple)(self._list(inner[0], node, path))
        return self._scalar(kind, node, path)

    def _first(self, kinds: Sequence[Any], node: Any, path: str) -> Any:
        """Read as the first of `kinds` that fits. If none fits, the last one's error is raised."""
        wanted = [kind for kind in kinds if (kind is NoneType) == (node is None)] or [*kinds]
        for kind in wanted[:-1]:
            seen = {*self.seen}
            try:
                return self.read(kind, node, path)
            except DataError:
                self.seen = seen
        return self.read(wanted[-1], node, path)

    def _dataclass(self, kind: type, node: Any, path: str) -> Any:
        hints = _hints(kind)
        _checked(isinstance(node, dict) and node.keys() == hints.keys(), node, kind, path)
        return kind(**{name: self.read(hint, node[name], _below(path, name)) for name, hint in hints.items()})

    def _list(self, kind: Any, node: Any, path: str) -> Iterator[Any]:
        _checked(isinstance(node, list), node, list, path)
        return (self.read(kind, each, _below(path, at)) for at, each in enumerate(node))

    def _array(self, node: Any, path: str) -> Array:
        is_bits = isinstance(node, dict) and [*node] == ["bits"]
        shape = tuple(self._list(int, node["bits"] if is_bits else node, path))
        array = self._take(path)
        if not is_bits:
            return cast(Array, _checked(array.shape == shape, array, shape, path))
        size = math.prod(shape)
        fits = array.dtype == np.uint8 and array.shape == (-(-size // 8),) and min(shape, default=0) >= 0
        _checked(fits, array, f"{size} bits", path)
        return np.unpackbits(array, count=size).astype(np.bool_).reshape(shape)

    def _take(self, path: str) -> Array:
        _checked(path in self._arrays, None, "an array", path)
        self.seen.add(path)
        return self._arrays[path]

    def _scalar(self, kind: Any, node: Any, path: str) -> Any:
        if kind is float and node in ("inf", "-inf", "nan"):
            return float(node)
        fits = (
            type(node) is kind or (kind is float and type(node) is int) or (kind is NoneType and node is None)
        )
        return _checked(fits, node, kind, path)


def _checked(fits: bool, node: object, expected: object, path: str) -> Any:
    if not fits:
        shown = f"{node.dtype} {list(node.shape)}" if isinstance(node, np.ndarray) else type(node).__name__
        name = expected.__name__ if isinstance(expected, type) else expected
        raise DataError(f"{path or 'the whole'} should be {name}, got {shown}")
    return node


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Map each field's name to its type."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}
