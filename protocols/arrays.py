"""Named arrays (a model's weights) as one immutable value with vector arithmetic.

No party: a container. Arrays that came from a peer are read-only views of the received bytes;
`to_torch` copies, so that no module can write into them.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from protocols.errors import DataError

Array = NDArray[Any]


def read_only(array: Array) -> Array:
    """Return a view of `array` that refuses writes, or `array` itself if it already does."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def to_torch(array: Array) -> torch.Tensor:
    """A tensor that owns its memory, same dtype and shape."""
    return torch.from_numpy(np.array(array, copy=True, order="C"))


class Arrays(Mapping[str, Array]):
    """An immutable mapping from name to array. `+ - *` work array by array.

    Integer and boolean arrays (counters such as BatchNorm's) take part in sums; where they are
    loaded back into a module they are rounded to the module's dtype.
    """

    __slots__ = ("_items",)
    __array_ufunc__ = None  # numpy leaves `2.0 * arrays` to `__rmul__`

    def __init__(self, items: Mapping[str, Array] | Iterable[tuple[str, Array]] = ()) -> None:
        self._items: dict[str, Array] = {name: read_only(np.asarray(a)) for name, a in dict(items).items()}

    @classmethod
    def of(cls, items: dict[str, Array]) -> Arrays:
        """Wrap arrays that are known to be read-only, without checking each of them."""
        made = cls.__new__(cls)
        made._items = items
        return made

    @classmethod
    def from_module(cls, module: nn.Module) -> Arrays:
        """A copy of all parameters and buffers of `module`, by their `state_dict` names."""
        return cls((n, t.detach().cpu().numpy().copy()) for n, t in module.state_dict().items())

    def load_into(self, module: nn.Module) -> None:
        """Write these arrays into `module`, whose names and shapes must be the same."""
        own = module.state_dict()
        if own.keys() != self._items.keys():
            raise DataError(f"weights hold {sorted(self._items)}, the module {sorted(own)}; same model?")
        for name, tensor in own.items():
            if tuple(tensor.shape) != self._items[name].shape:
                shape = self._items[name].shape
                raise DataError(f"{name}: the module has {tuple(tensor.shape)}, weights {shape}; same model?")
        with torch.no_grad():
            for name, tensor in own.items():
                array = self._items[name]
                if not tensor.is_floating_point() and array.dtype.kind == "f":
                    array = np.rint(array)
                tensor.copy_(to_torch(array))

    def map(self, fn: Callable[[Array], Array]) -> Arrays:
        """Apply `fn` to each array and keep the names."""
        return Arrays((n, fn(a)) for n, a in self._items.items())

    @property
    def size(self) -> int:
        """The number of elements in all arrays together."""
        return sum(a.size for a in self._items.values())

    @property
    def nbytes(self) -> int:
        """The number of bytes in all arrays together."""
        return sum(a.nbytes for a in self._items.values())

    def like(self, other: Arrays) -> bool:
        """Return whether these arrays have the same names, shapes and dtypes as `other`."""
        if len(self._items) != len(other._items):
            return False
        for name, a in self._items.items():
            b = other._items.get(name)
            if b is None or a.shape != b.shape or a.dtype != b.dtype:
                return False
        return True

    def __getitem__(self, name: str) -> Array:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> ItemsView[str, Array]:
        """(name, array) of each; the dictionary's own view, which is ten times as fast as Mapping's."""
        return self._items.items()

    def values(self) -> ValuesView[Array]:
        """The arrays, in the order of their names."""
        return self._items.values()

    def __add__(self, other: Arrays) -> Arrays:
        return self._pair(other, np.add)

    def __sub__(self, other: Arrays) -> Arrays:
        return self._pair(other, np.subtract)

    def __mul__(self, factor: float) -> Arrays:
        if isinstance(factor, Arrays):
            return NotImplemented
        return self.map(lambda a: a * factor)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Arrays)
            and self.like(other)
            and all(a.tobytes() == other._items[n].tobytes() for n, a in self._items.items())
        )

    def __hash__(self) -> int:
        return hash(frozenset((n, a.shape, a.tobytes()) for n, a in self._items.items()))

    def __repr__(self) -> str:
        return f"Arrays({', '.join(f'{n}: {a.dtype}{list(a.shape)}' for n, a in self._items.items())})"

    def __reduce__(self) -> tuple[type[Arrays], tuple[dict[str, Array]]]:
        return Arrays, (dict(self._items),)

    def _pair(self, other: Arrays, op: Callable[[Array, Array], Array]) -> Arrays:
        if self._items.keys() != other._items.keys():
            raise DataError(f"arrays {sorted(self._items)} and {sorted(other._items)} do not pair")
        return Arrays((n, _in_dtype(op, a, other._items[n])) for n, a in self._items.items())


def _in_dtype(op: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    # numpy refuses boolean subtraction; counters come back as integers, floats as they were.
    return op(a.astype(np.int64), b.astype(np.int64)) if a.dtype == bool else op(a, b)


def weighted_mean(values: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """sum(w_k a_k) / sum(w_k), in the order given and in each array's own dtype; whole numbers are rounded.

    Floats are summed in sequence order, so the caller passes roster order. A cell that is the same in all of
    `values` stays as it is, to the bit: frozen weights, masks with infinities, whole numbers of any size.
    """
    if not values:
        raise DataError("nothing to average: no client sent an update")
    total = float(sum(weights))
    if not total > 0 or min(weights) < 0:
        raise DataError(f"the weights of {len(values)} updates sum to {total:g}; expected > 0, none below 0")
    shapes = {name: array.shape for name, array in values[0].items()}
    if any({name: array.shape for name, array in value.items()} != shapes for value in values):
        raise DataError(f"{len(values)} updates differ in names or shapes; do all use the same model?")
    shares = [weight / total for weight in weights]
    return Arrays((name, _mean([value[name] for value in values], shares)) for name in values[0])


def _mean(parts: Sequence[Array], shares: Sequence[float]) -> Array:
    first = parts[0]
    if first.dtype.kind != "f":  # around the first, since a float64 cannot hold all whole numbers
        base = first.astype(np.int64)
        moved = sum(share * (part.astype(np.int64) - base) for part, share in zip(parts, shares, strict=True))
        return (base + np.rint(moved).astype(np.int64)).astype(first.dtype)
    sums = np.zeros(first.shape, first.dtype)
    weighted = np.empty_like(sums)
    with np.errstate(invalid="ignore"):  # infinity less infinity, or times 0
        for part, share in zip(parts, shares, strict=True):
            sums += np.multiply(part, first.dtype.type(share), out=weighted)
    same = np.ones(first.shape, bool)
    for part in parts[1:]:
        same &= (part == first) | ((part != part) & (first != first))
        if not same.any():  # as a rule after the first, where all have trained
            return sums
    np.copyto(sums, first, where=same)
    return sums


def prefixed(name: str, arrays: Arrays) -> dict[str, Array]:
    """Put `name` and a dot before each array's name, so that one part can hold several models' arrays."""
    return {f"{name}.{key}": array for key, array in arrays.items()}


def under(name: str, arrays: Arrays) -> Arrays:
    """Undo `prefixed`: return the arrays that it put under `name`, with their original names."""
    start = f"{name}."
    return Arrays((key.removeprefix(start), a) for key, a in arrays.items() if key.startswith(start))


def inferred(column: pd.Series) -> pd.Series:
    """A column with the type of its values: numbers that are held as objects, for one None is enough to make
    them so, are numbers with gaps. What has no value at all is a column of gaps."""
    if column.dtype != object:
        return column
    found = column.infer_objects()
    return found.astype(np.float64) if found.dtype == object and found.isna().all() else found
