"""Message: the only thing that may leave a party.

A message is a frozen pydantic model. Its class says what it `reveals` to a curious receiver,
or it does not import; its array fields declare dtype and shape, checked where the message is
built and again where it is decoded. What it `carries` in the clear, whole rows or their labels,
is declared beside that; a class of another package that does not say so counts as not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from protocols.arrays import Array, Arrays, read_only
from protocols.errors import ConfigError

OURS = ("protocols", "horizontal", "split", "vfl")  # packages whose messages all say what they carry
_UNCHANGING = (Arrays, bytes, str, int, float, bool)  # annotations of fields
CLEAR = frozenset({"rows", "labels"})  # what a message can carry in the clear: rows' features, rows' labels


@dataclass(frozen=True)
class Spec:
    """Dtype and shape of an array field: `Annotated[Array, Spec("float32", ("b", "k"))]`.

    `dtype` may list alternatives, `"int64|float32"`. In `shape` a number is that size and a
    letter stands for one size throughout the message.
    """

    dtype: str
    shape: tuple[str | int, ...]

    def check(self, value: object) -> Array:
        """Return `value` as a read-only view; raise ValueError if it does not match this dtype and shape."""
        if not isinstance(value, np.ndarray):
            raise ValueError(f"expected an array {self}, got {type(value).__name__}")
        shape = value.shape
        fits = value.dtype in self._dtypes and len(shape) == len(self.shape)
        if not fits or any(shape[axis] != size for axis, size in self._fixed):
            raise ValueError(f"expected {self}, got {value.dtype} {list(shape)}")
        return read_only(value) if value.flags.writeable else value

    @cached_property
    def _dtypes(self) -> frozenset[np.dtype[Any]]:
        return frozenset(np.dtype(name) for name in self.dtype.split("|"))

    @cached_property
    def _fixed(self) -> tuple[tuple[int, int], ...]:
        return tuple((axis, size) for axis, size in enumerate(self.shape) if isinstance(size, int))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not self._dtypes:
            raise TypeError("a Spec names at least one dtype")
        return core_schema.no_info_plain_validator_function(self.check)


class Message(BaseModel):
    """One thing that one party tells another. Subclass it; its fields are all that leaves.

    Fields may be arrays with a `Spec`, `Arrays`, `bytes`, or JSON values (numbers, strings, lists,
    mappings, None). Equality and hash go by content. The repr shows shapes and types, no values.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )
    reveals: ClassVar[str]
    carries: ClassVar[frozenset[str] | None] = None  # of CLEAR; None: not known
    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Message]]] = {}
    specs: ClassVar[dict[str, Spec]] = {}
    is_flat: ClassVar[bool] = True  # no field holds a list or a mapping of Python's, which could be changed
    _repeated: ClassVar[tuple[tuple[str, str, int], ...]] = ()  # (letter, field, axis) of recurring letters

    def __init_subclass__(
        cls, *, reveals: str = "", carries: Collection[str] | None = None, version: int = 1, **config: Any
    ) -> None:
        super().__init_subclass__(**config)
        if not reveals.strip():
            raise TypeError(
                f"{cls.__name__}: say what it reveals: class {cls.__name__}(Message, reveals=...)"
            )
        if isinstance(carries, str) or not CLEAR.issuperset(carries or ()):
            raise TypeError(f"{cls.__name__}: carries={carries!r} should be a set of 'rows' and 'labels'")
        cls.reveals = reveals
        if carries is not None:
            cls.carries = frozenset(carries)
        elif cls.carries is None and cls.__module__.partition(".")[0] in OURS:
            cls.carries = frozenset()
        cls.kind = f"{cls.__module__.partition('.')[0]}.{cls.__name__}/{version}"
        other = Message.kinds.get(cls.kind)
        if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.kind} is defined in {other.__module__} already; choose another name")
        Message.kinds[cls.kind] = cls

    @classmethod
    def __pydantic_init_subclass__(cls, **config: Any) -> None:
        cls.specs, cls.is_flat = {}, True
        for name, field in cls.model_fields.items():
            if name in ("kind", "kinds", "reveals", "carries", "specs", "is_flat"):
                raise TypeError(f"{cls.__name__}.{name}: every message has a {name}; choose another name")
            # The Spec stands beside an array, or inside `Annotated[Array, Spec(...)] | None`.
            said = list(field.metadata)
            if get_origin(field.annotation) in (Union, UnionType):
                said += [word for option in get_args(field.annotation) for word in get_args(option)[1:]]
            cls.specs.update((name, spec) for spec in said if isinstance(spec, Spec))
            if name not in cls.specs and field.annotation not in _UNCHANGING:
                cls.is_flat = False
            if name not in cls.specs and np.ndarray in (field.annotation, get_origin(field.annotation)):
                raise TypeError(f"{cls.__name__}.{name}: use Annotated[Array, Spec(dtype, shape)]")
        places = [(w, name, axis) for name, spec in cls.specs.items() for axis, w in enumerate(spec.shape)]
        times = Counter(letter for letter, _, _ in places if isinstance(letter, str))
        cls._repeated = tuple(
            (letter, name, axis)
            for letter, name, axis in places
            if isinstance(letter, str) and times[letter] > 1
        )

    def model_post_init(self, context: object) -> None:
        """Check that each letter stands for one size throughout the message."""
        if not self._repeated:
            return
        sizes: dict[str, int] = {}
        for letter, name, axis in self._repeated:
            value = self.__dict__[name]
            if value is not None and sizes.setdefault(letter, value.shape[axis]) != value.shape[axis]:
                raise ValueError(
                    f"{name} has {letter} = {value.shape[axis]}, elsewhere it is {sizes[letter]}"
                )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(_same(value, getattr(other, name)) for name, value in self)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(_content(value) for _, value in self)))

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        # What pydantic's repr and str, rich and debuggers all show.
        return ((name, _Shown(_shape(value))) for name, value in self)

    __str__ = BaseModel.__repr__


class _Shown(str):
    """A string whose repr has no quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def message_class(kind: str) -> type[Message]:
    """The class of a wire kind such as `"horizontal.Update/1"`."""
    try:
        return Message.kinds[kind]
    except KeyError:
        raise ConfigError(f"no message {kind!r} is defined here") from None


def _content(value: object) -> object:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return value if isinstance(value, Arrays) else repr(value)


def _same(a: object, b: object) -> bool:
    return bool(_content(a) == _content(b))


def _shape(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value) if isinstance(value, Arrays) else type(value).__name__
