"""A feature party's part in growing trees: it sums up what it cannot read, and keeps what it splits by.

Takes part: one feature party; its counterpart is `vfl.boosting.label`. Who learns what is said in
`vfl.boosting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from protocols.arrays import Array, Arrays, inferred
from protocols.errors import ConfigError, DataError, ProtocolError, marked
from protocols.hazmat.paillier import EncryptedArray
from protocols.hazmat.paillier.array import Key
from protocols.party import Party
from protocols.psi.ids import CanonicalIds
from protocols.trees.bins import Bins, fit_all
from protocols.trees.forest import Splits
from vfl.alignment.roles import Aligned, align_feature
from vfl.boosting.messages import (
    LEAF,
    OTHERS,
    YOURS,
    BinCounts,
    ClearGradients,
    Divided,
    Drawn,
    Enough,
    SealedGradients,
    Sides,
    TreeKey,
    from_bits,
    to_bits,
)
from vfl.boosting.nodes import Drawing, Level, below, roots
from vfl.boosting.parameters import Boosting
from vfl.boosting.parts import Owned, Table
from vfl.boosting.predict import answer, rows_in_bins
from vfl.boosting.sums import CHUNK, Statistics, joined, sum_up, summing_cost, take
from vfl.weights import carrying_half


@dataclass(frozen=True)
class _Held:
    """What stays the same from round to round."""

    label_party: str
    plan: Boosting
    codes: Array = field(repr=False)  # (columns, common rows) uint8
    counts: Array  # (columns,) bins of each
    key: Key | None  # None: in the clear
    outputs: int
    ids: CanonicalIds
    common: Array = field(repr=False)  # which of `ids` are in the common rows
    drawn: list[Array] = field(repr=False)  # bits of the rows that rounds of this attempt learnt from


async def feature_party(
    me: Party, label_party: str, table: Table, plan: Boosting, before: Owned | None = None
) -> tuple[Owned, Aligned]:
    """Align, then help to grow trees. before: what this party holds of a model that is to be continued."""
    peers = [party for party in me.desk.parties if party != label_party]
    async with me.within("align") as at:
        aligned = await align_feature(at, label_party, peers, table.ids, protocol=plan.protocol)
    bins, codes = await divided(me, table, aligned, plan, before)
    about = described(bins, table.monotone)
    grown = _Grown(Splits.empty() if before is None else before.splits, about.monotone)
    with marked(me.name, "setup"):
        steps = me.steps(plan.n_estimators, grown, begin=plan.begin)
    async with me.within("setup") as at:
        word = await at.recv(label_party, TreeKey)
        check_outputs(table.monotone, word.outputs)
        key = None if plan.scheme is None else plan.scheme.key_from_bytes(word.key)
        await at.send(label_party, about)
    counts, every = about.bins.astype(np.int64), [to_bits(np.ones(codes.shape[1], bool))]
    which = table.ids, aligned.rows, every if plan.draws else []
    held = _Held(label_party, plan, codes, counts, key, word.outputs, *which)
    if before is not None and not steps.resumed:
        async with me.within("before") as at:
            await answer(at, label_party, codes, before.splits, plan.predict_protocol)
    enough: Enough | None = None
    for step in steps:
        async with step as at:
            told = await at.recv(label_party, (Drawn, Enough))
            if isinstance(told, Enough):
                enough = told
                step.leave_out()
                break
            grown.add(await _help(at, held, told, first=step.number == 0))
    if plan.early_stopping:
        async with me.within("end") as at:
            enough = enough or await at.recv(label_party, Enough)
        if not plan.begin <= enough.rounds < plan.begin + len(grown.ends):
            raise ProtocolError(f"{Enough.kind} from {label_party}: {enough.rounds} rounds were not trained")
        return Owned(bins, grown.joined.first(grown.ends[enough.rounds - plan.begin])), aligned
    return Owned(bins, grown.joined), aligned


class _Grown:
    """What training goes on from: this party's splits, and how many there were after each round."""

    def __init__(self, before: Splits, monotone: Array) -> None:
        self._splits, self._monotone, self.ends = [before], monotone, [len(before)]

    @property
    def joined(self) -> Splits:
        """All splits so far."""
        return Splits.joined(self._splits)

    def add(self, splits: Sequence[Splits]) -> None:
        """Those of one round."""
        self._splits += splits
        self.ends.append(self.ends[-1] + sum(map(len, splits)))

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        ends = np.array(self.ends, np.int64)
        return Arrays({**self.joined.arrays(), "ends": ends, "monotone": self._monotone})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. ConfigError for other constraints than it was trained with."""
        if not np.array_equal(state["monotone"], self._monotone):
            raise ConfigError(
                "monotone is another than when this training began; put it back, or let the caller train anew"
            )
        self._splits, self.ends = [Splits.of(state)], state["ends"].tolist()


async def divided(
    me: Party, table: Table, aligned: Aligned, plan: Boosting, before: Owned | None
) -> tuple[tuple[Bins, ...], Array]:
    """This party's bins, of the common rows unless they are known from `before`, and the rows in them."""
    columns = table.columns.iloc[aligned.rows]
    bins = () if before is None else before.bins
    if before is None:
        bins = await me.compute(fit_all, columns, plan.max_bins, cost=20.0 * columns.size)
    return bins, await rows_in_bins(me, table, aligned, bins)


def described(bins: Sequence[Bins], monotone: Mapping[Any, int]) -> BinCounts:
    """What the label party is told of them."""
    return BinCounts(
        bins=np.array([one.count for one in bins], np.uint8),
        categorical=np.array([one.is_categorical for one in bins], bool),
        monotone=np.array([monotone.get(one.name, 0) for one in bins], np.int8),
    )


def check_monotone(monotone: Mapping[str, int], table: pd.DataFrame) -> None:
    """DataError for a constraint on what is no column of numbers."""
    for name, way in monotone.items():
        if name not in table.columns:
            raise DataError(f"monotone names {name!r}, which is no column to learn from")
        if way not in (1, -1, 0) or not pd.api.types.is_any_real_numeric_dtype(inferred(table[name])):
            raise DataError(
                f"monotone[{name!r}] is {way!r} for a column of {table[name].dtype}; expected 1, -1 or 0, "
                "for a column of numbers"
            )


def check_outputs(monotone: Mapping[str, int], outputs: int) -> None:
    """ConfigError for a constraint on several outputs: where all rise, chances can fall."""
    if outputs > 1 and any(monotone.values()):
        error = ConfigError(
            f"monotone holds a number or the chance of the second of two classes, and here are {outputs} "
            "classes; leave monotone out"
        )
        error.told = str(error)  # no name of a column
        raise error


async def _help(me: Party, held: _Held, told: Drawn, *, first: bool) -> list[Splits]:
    """One round: a tree for each output, level by level. Returns the splits that were added.

    first: whether no tree came before, so that hessians in the clear are in the ratio of the rows' weights.
    """
    plan, label_party, rows = held.plan, held.label_party, held.codes.shape[1]
    if len(told.columns) != len(held.counts):
        raise ProtocolError(
            f"{Drawn.kind} from {label_party}: expected {len(held.counts)} columns, got {len(told.columns)}"
        )
    added: list[Splits] = []
    if not told.columns.any():
        return added
    drawing = Drawing(from_bits(told.rows, rows, Drawn.kind, label_party))
    codes = np.ascontiguousarray(held.codes[told.columns][:, drawing.mask])
    counts = held.counts[told.columns]
    level = roots(held.outputs, drawing, plan.min_samples_split)
    if not level.rows:
        return added
    await _compare(me, held, drawing.mask)
    width = 2 * held.outputs + 1
    statistics = await _statistics(me, held, len(drawing.rows), width)
    if first and not isinstance(statistics, EncryptedArray):
        me.guard.group(carrying_half(statistics[:, 1]))
    for depth in range(plan.max_depth):
        async with me.within(depth) as at:
            at.guard.group(level.smallest)
            nodes = [level.drawn[node] for node in level.summed]
            bins = len(nodes) * int((counts + 1).sum())
            cost = summing_cost(sum(map(len, nodes)), len(counts), width, bins, held.key is not None)
            await at.send(label_party, await at.compute(sum_up, statistics, codes, counts, nodes, cost=cost))
            word = await at.recv(label_party, Divided)
            mine, left = _mine(word, level, told.columns, plan.min_samples_split, label_party)
            split = Splits.new(word.columns, left, [len(level.drawn[node]) for node in mine])
            added.append(split)
            sides = {node: split.go_left(n, held.codes, level.rows[node]) for n, node in enumerate(mine)}
            if mine:
                at.guard.group(_smallest_half(sides, level, drawing, held))
                await at.send(label_party, Sides(left=to_bits(np.concatenate([*sides.values()]))))
            others = np.flatnonzero(word.fate == OTHERS).tolist()
            if depth + 1 == plan.max_depth or not (mine or others):
                break
            if others:
                said = await at.recv(label_party, Sides)
                sides |= apart(said, [level.rows[node] for node in others], others, label_party)
                _smallest_half(sides, level, drawing, held)
            level, _ = below(level, sides, drawing, plan.min_samples_split)
            if not level.rows:
                break
    return added


async def _compare(me: Party, held: _Held, drawn: Array) -> None:
    """Ask the policy about the rows that a round learns from: sums over two sets of rows differ by those over
    the rows that are in one of the sets alone."""
    bits = to_bits(drawn)
    apart = [int(np.bitwise_count(bits ^ earlier).sum()) for earlier in held.drawn]
    if 0 in apart:
        return
    if held.plan.draws:
        me.guard.difference(min(apart))
    elif apart:
        raise ProtocolError(
            f"{Drawn.kind} from {held.label_party}: other rows than in the rounds before; without subsample "
            "and GOSS all learn from the same"
        )
    elif not drawn.all():
        await me.compute(me.guard.learns, held.ids.at(held.common[drawn]), cost=0.0)
    held.drawn.append(bits)


def _smallest_half(sides: Mapping[int, Array], level: Level, drawing: Drawing, held: _Held) -> int:
    """Drawn rows in the smallest child of nodes that are split, by which of their rows go left.

    ProtocolError where they are fewer than all were told that a leaf has: the label party has counted them.
    """
    halves = [level.rows[node][way] for node, left in sides.items() for way in (left, ~left)]
    smallest = min(len(drawing.among(half)) for half in halves)
    if smallest < held.plan.min_samples_leaf:
        raise ProtocolError(
            f"{Divided.kind} from {held.label_party}: a split that leaves fewer than "
            f"{held.plan.min_samples_leaf} rows on a side"
        )
    return smallest


async def _statistics(me: Party, held: _Held, rows: int, width: int) -> Statistics:
    """What the label party sends of the drawn rows."""
    kind = ClearGradients if held.key is None else SealedGradients
    parts = []
    for start in range(0, rows, CHUNK):
        message = await me.recv(held.label_party, kind)
        size = min(CHUNK, rows - start)
        agreed = held.plan.gradient_bits, rows
        parts.append(await me.compute(take, message, held.key, (size, width), *agreed, cost=float(size)))
    return joined(parts)


def _mine(word: Divided, level: Level, drawn: Array, least: int, sender: str) -> tuple[list[int], Array]:
    """The nodes that this party splits, and which bins go left in each. ProtocolError for no such split."""
    mine = np.flatnonzero(word.fate == YOURS)
    known = np.isin(word.fate, (LEAF, YOURS, OTHERS)).all() and len(word.fate) == len(level.rows)
    if not known or len(mine) != len(word.columns) or len(mine) != len(word.left):
        raise ProtocolError(
            f"{Divided.kind} from {sender}: {len(word.columns)} splits do not fit {len(level.rows)} nodes"
        )
    if (word.columns >= len(drawn)).any() or not drawn[word.columns].all():
        raise ProtocolError(f"{Divided.kind} from {sender}: a column that takes no part in this round")
    if any(len(level.drawn[node]) < least for node in np.flatnonzero(word.fate != LEAF).tolist()):
        raise ProtocolError(f"{Divided.kind} from {sender}: a split of fewer than {least} rows")
    return mine.tolist(), np.unpackbits(word.left, axis=1).astype(bool)


def apart(said: Sides, rows: Sequence[Array], nodes: Sequence[int], sender: str) -> dict[int, Array]:
    """The sides of the rows of each node, one after another in `said`."""
    sizes = [len(some) for some in rows]
    flags = from_bits(said.left, sum(sizes), Sides.kind, sender)
    return dict(zip(nodes, np.split(flags, np.cumsum(sizes)[:-1]), strict=True))
