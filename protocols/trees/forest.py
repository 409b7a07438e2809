"""Trees as arrays: the label party's, which know who splits, and an owner's splits, which know by what.

Takes part: the label party, which holds a `Forest`: of each node, whose split it is and which of that party's
("shop, split 17"), its children, and the values of leaves. Each party that splits holds `Splits`: of each of
its own, which column and which bins go left. Neither says what the other knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from protocols.arrays import Array

LEAF = -1


@dataclass(frozen=True)
class Forest:
    """Trees in the order in which they were grown. Node numbers run through all trees."""

    parties: tuple[str, ...]  # in roster order; `owner` counts in it
    roots: Array = field(repr=False)  # (trees,) int32: the first node of each
    output: Array = field(repr=False)  # (trees,) int32: which of the model's outputs each adds to
    owner: Array = field(repr=False)  # (nodes,) int32: whose split, LEAF of a leaf
    split: Array = field(repr=False)  # (nodes,) int32: which of the owner's
    left: Array = field(repr=False)  # (nodes,) int32: the left child; the right one follows it
    value: Array = field(repr=False)  # (nodes,) float64: of leaves; 0 elsewhere
    gain: Array = field(repr=False)  # (nodes,) float64: of splits; 0 elsewhere

    @classmethod
    def empty(cls, parties: Sequence[str]) -> Forest:
        """A forest without a tree."""
        ints, floats = np.zeros(0, np.int32), np.zeros(0)
        return cls(tuple(parties), ints, ints, ints, ints, ints, floats, floats)

    def __len__(self) -> int:
        return len(self.roots)

    def first(self, trees: int) -> Forest:
        """The first so many trees."""
        end = self.roots[trees] if trees < len(self) else len(self.owner)
        owner, split, left = self.owner[:end], self.split[:end], self.left[:end]
        value, gain = self.value[:end], self.gain[:end]
        return Forest(self.parties, self.roots[:trees], self.output[:trees], owner, split, left, value, gain)

    def among(self, parties: Sequence[str]) -> Forest:
        """The same trees, where the same parties are listed in this order."""
        place = np.array([parties.index(party) for party in self.parties], np.int32)
        owner = np.where(self.owner == LEAF, np.int32(LEAF), place[self.owner])
        return replace(self, parties=tuple(parties), owner=owner)

    def splits(self, party: str) -> int:
        """How many splits are `party`'s."""
        return int((self.owner == self.parties.index(party)).sum())

    def arrays(self) -> dict[str, Array]:
        """For a part or a checkpoint."""
        names = ("roots", "output", "owner", "split", "left", "value", "gain")
        return {f"forest.{name}": getattr(self, name) for name in names}

    @classmethod
    def of(cls, parties: Sequence[str], arrays: Mapping[str, Array]) -> Forest:
        """What `arrays` gave."""
        names = ("roots", "output", "owner", "split", "left", "value", "gain")
        roots, output, owner, split, left, value, gain = (arrays[f"forest.{name}"] for name in names)
        return cls(tuple(parties), roots, output, owner, split, left, value, gain)


class Growing:
    """A forest to which nodes are added."""

    def __init__(self, forest: Forest) -> None:
        self.parties = forest.parties
        self._roots, self._output = list(forest.roots), list(forest.output)
        self._owner, self._split, self._left = list(forest.owner), list(forest.split), list(forest.left)
        self._value, self._gain = list(forest.value), list(forest.gain)
        self._splits = [forest.splits(party) for party in forest.parties]

    def root(self, output: int) -> int:
        """A new tree; its root."""
        self._roots.append(len(self._owner))
        self._output.append(output)
        return self._add()

    def divide(self, node: int, owner: int, gain: float) -> tuple[int, int]:
        """Make `node` a split, the next one of party `owner`; its children."""
        self._owner[node], self._split[node], self._gain[node] = owner, self._splits[owner], gain
        self._splits[owner] += 1
        self._left[node] = self._add()
        return self._left[node], self._add()

    def settle(self, node: int, value: float) -> None:
        """Make `node` a leaf."""
        self._value[node] = value

    def done(self) -> Forest:
        """All trees so far."""
        numbers = (self._roots, self._output, self._owner, self._split, self._left)
        roots, output, owner, split, left = (np.array(each, np.int32) for each in numbers)
        value, gain = (np.array(each, np.float64) for each in (self._value, self._gain))
        return Forest(self.parties, roots, output, owner, split, left, value, gain)

    def _add(self) -> int:
        self._owner.append(LEAF)
        self._split.append(0)
        self._left.append(0)
        self._value.append(0.0)
        self._gain.append(0.0)
        return len(self._owner) - 1


@dataclass(frozen=True)
class Splits:
    """One party's own splits, in the order in which it was told them."""

    column: Array = field(repr=False)  # (splits,) int32, of its own columns
    left: Array = field(repr=False)  # (splits, 256) bool: the bins that go left
    rows: Array = field(repr=False)  # (splits,) int32: how many drawn rows reached it in training

    @classmethod
    def empty(cls) -> Splits:
        """None."""
        return cls(np.zeros(0, np.int32), np.zeros((0, 256), bool), np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.column)

    @classmethod
    def new(cls, column: Array, left: Array, rows: Sequence[int]) -> Splits:
        """Some: column (k,), left (k, 256) bool, rows (k,)."""
        return cls(column.astype(np.int32), left, np.array(rows, np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Splits]) -> Splits:
        """All of `parts`, one after another."""
        every = [cls.empty(), *parts]
        return cls(
            *(np.concatenate([getattr(one, name) for one in every]) for name in ("column", "left", "rows"))
        )

    def first(self, count: int) -> Splits:
        """The first so many."""
        return Splits(self.column[:count], self.left[:count], self.rows[:count])

    def go_left(self, which: Array | int, binned: Array, rows: Array) -> Array:
        """bool, for each pair of a split and a row, or for one split and each row.

        binned: (columns, rows of the table) uint8.
        """
        found: Array = self.left[which, binned[self.column[which], rows]]
        return found

    def arrays(self) -> dict[str, Array]:
        """For a part or a checkpoint."""
        bits = np.packbits(self.left, axis=1)
        return {"splits.column": self.column, "splits.left": bits, "splits.rows": self.rows}

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Splits:
        """What `arrays` gave."""
        packed = arrays["splits.left"]
        left = np.unpackbits(packed, axis=1).astype(bool) if len(packed) else np.zeros((0, 256), bool)
        return cls(arrays["splits.column"], left, arrays["splits.rows"])


Ask = Callable[[int, Array, Array], Array]


class Walk:
    """All rows on their way down all trees, a level at a time."""

    def __init__(self, forest: Forest, rows: int) -> None:
        self._forest = forest
        self._node = np.repeat(forest.roots[:, None], rows, axis=1)  # (trees, rows)

    def waiting(self) -> dict[int, tuple[Array, Array]]:
        """Owner -> (its splits, rows) of all pairs that are at a split of its, by split and then by row."""
        owner = self._forest.owner[self._node]
        found = {}
        for party in np.unique(owner[owner != LEAF]).tolist():
            tree, row = np.nonzero(owner == party)
            split = self._forest.split[self._node[tree, row]]
            order = np.lexsort((row, split))
            found[party] = split[order], row[order]
        return found

    def go(self, answers: Mapping[int, Array]) -> None:
        """Move on: of each owner, whether each of its pairs goes left."""
        before = self._node.copy()
        owner = self._forest.owner[before]
        for party, left in answers.items():
            tree, row = np.nonzero(owner == party)
            node = before[tree, row]
            order = np.lexsort((row, self._forest.split[node]))
            tree, row, node = tree[order], row[order], node[order]
            self._node[tree, row] = self._forest.left[node] + ~left

    def add_to(self, outputs: Array) -> None:
        """Add each tree's leaf to the outputs (rows, outputs), tree by tree, as they were when trained."""
        for node, output in zip(self._node, self._forest.output, strict=True):
            outputs[:, output] += self._forest.value[node]
