"""One round at the label party: a tree for each output, all of them a level at a time.

Takes part: the label party, with each feature party that has columns in the round (`vfl.boosting.feature`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from protocols.arrays import Array
from protocols.costs import Cost
from protocols.party import Coordinator
from protocols.trees.forest import Forest, Growing, Splits
from protocols.trees.splits import Found, best_splits, weight
from protocols.trees.sums import Quantised, histogram, padded
from vfl.boosting.checks import Above, check_side, check_sums
from vfl.boosting.feature import apart
from vfl.boosting.messages import LEAF, OTHERS, YOURS, ClearSums, Divided, SealedSums, Sides, to_bits
from vfl.boosting.nodes import Drawing, Level, below, roots
from vfl.boosting.setting import Setting, Side
from vfl.boosting.sums import CHUNK, open_sums, opening_cost, seal, sealing_cost

MOST_IN_STOCK = 1 << 17  # obfuscators made while waiting: 80 MB at 2048 bits


@dataclass(frozen=True)
class _Nodes:
    """What the label party knows of a level's nodes besides their rows."""

    number: Sequence[int]  # in the forest
    output: Sequence[int]
    low: Array  # (nodes,) float64: what values are held to
    high: Array


class Grower:
    """Adds trees to `growing`, its own splits to `splits`, and what leaves say to `raw` (rows, outputs)."""

    def __init__(self, setting: Setting, growing: Growing, splits: Splits, raw: Array) -> None:
        self.setting, self.growing, self.raw = setting, growing, raw
        self._splits = [splits]

    @property
    def splits(self) -> Splits:
        """The label party's own, so far."""
        return Splits.joined(self._splits)

    def arrays(self) -> dict[str, Array]:
        """For a checkpoint."""
        return {**self.growing.done().arrays(), **self.splits.arrays(), "raw": self.raw.copy()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take up what `arrays` gave."""
        self.growing = Growing(Forest.of(self.growing.parties, state))
        self._splits, self.raw = [Splits.of(state)], state["raw"].copy()

    async def round(
        self, me: Coordinator, statistics: Quantised, drawing: Drawing, columns: Array, *, last: bool
    ) -> None:
        """Grow one tree for each output, from these rows' statistics and these of all columns."""
        setting, plan = self.setting, self.setting.plan
        outputs, free = list(range(setting.outputs)), np.full(setting.outputs, np.inf)
        nodes = _Nodes([self.growing.root(output) for output in outputs], outputs, -free, free)
        level = roots(setting.outputs, drawing, plan.min_samples_split)
        if not level.rows:
            every, drawn = np.arange(len(drawing.mask)), np.arange(len(statistics.values))
            for output in outputs:
                self._settle(nodes.number[output], output, every, drawn, (-np.inf, np.inf), statistics)
            return
        grown = _Round(statistics, drawing, columns, [s for s in setting.peers if columns[s.at].any()])
        await self._send(me, grown)
        with self._preparing(grown, last):
            above: Above | None = None
            for depth in range(plan.max_depth):
                async with me.within(depth) as at:
                    sums = _with_siblings(await self._sums(at, level, grown), level, above)
                    found = await self._best(at, level, nodes, sums, grown, above)
                    level, nodes, parents = await self._divide(at, level, nodes, found, grown, depth)
                if not level.rows:
                    return
                above = Above(sums[parents], found.column[parents], found.left[parents])

    async def _send(self, me: Coordinator, grown: _Round) -> None:
        """The drawn rows' statistics, to those who have a column in the round."""
        setting, values = self.setting, grown.statistics.values
        for start in range(0, len(values), CHUNK) if grown.active else ():
            part = values[start : start + CHUNK]
            cost = sealing_cost(len(part), setting.width, setting.key is not None)
            bits = setting.plan.gradient_bits
            message = await me.compute(seal, part, bits, len(values), setting.key, cost=cost)
            # The same ciphertexts to all: they know anyway that these are of the same rows.
            await me.broadcast(message, to=[side.party for side in grown.active])

    def _preparing(self, grown: _Round, last: bool) -> AbstractContextManager[None]:
        """Prepare to encrypt the next round, while the others compute."""
        if last or self.setting.key is None or not grown.active:
            return nullcontext()
        return self.setting.key.filling(min(len(grown.statistics.values), MOST_IN_STOCK))

    async def _sums(self, me: Coordinator, level: Level, grown: _Round) -> Array:
        """(summed nodes, drawn columns, bins + 1, statistics): all parties' histograms, padded alike."""
        setting, columns, counts = self.setting, grown.columns, self.setting.columns.counts
        width, nodes = setting.width, [level.drawn[node] for node in level.summed]
        most = 2**setting.plan.gradient_bits * len(grown.statistics.values)
        parts = []
        for side in setting.sides:
            chosen = counts[side.at][columns[side.at]]
            shape = len(nodes), int((chosen + 1).sum()), width
            if side.party == setting.me:
                codes, values = grown.own(setting), grown.statistics.values
                cost: Cost = 2.0 * sum(map(len, nodes)) * len(codes) * width
                flat = await me.compute(_own_sums, codes, values, chosen, nodes, cost=cost)
            elif side in grown.active:
                message = await me.recv(side.party, ClearSums if setting.key is None else SealedSums)
                cost = opening_cost(shape[0] * shape[1], width, setting.key is not None)
                about = setting.key, shape, most, side.party
                flat = await me.compute(open_sums, message, *about, cost=cost)
            else:
                continue
            parts.append(padded(flat, chosen, int(counts[columns].max(initial=0))))
        return np.concatenate(parts, axis=1)

    async def _best(
        self, me: Coordinator, level: Level, nodes: _Nodes, sums: Array, grown: _Round, above: Above | None
    ) -> Found:
        """The best split of each node; nodes of too few rows have none."""
        setting = self.setting
        which = np.array([setting.of_output(output) for output in nodes.output])
        own = np.take_along_axis(sums, which[:, None, None, :], axis=3)
        values = [grown.values(rows, of) for rows, of in zip(level.drawn, which, strict=True)]
        sides = [(side.party, grown.place(side)) for side in grown.active]
        await me.compute(check_sums, own, values, above, sides, cost=10.0 * own.size)
        totals = np.stack([rows.sum(axis=0) for rows in values])
        bits, known = grown.statistics.bits[which], setting.columns.at(grown.columns)
        bounds = nodes.low, nodes.high
        found = await me.compute(
            best_splits, own[:, :, 1:], totals, bits, known, setting.plan.rules, *bounds, cost=40.0 * own.size
        )
        small = [len(rows) < setting.plan.min_samples_split for rows in level.drawn]
        found.gain[small] = 0.0
        return found

    async def _divide(
        self, me: Coordinator, level: Level, nodes: _Nodes, found: Found, grown: _Round, depth: int
    ) -> tuple[Level, _Nodes, list[int]]:
        """Split the nodes that gain by it, and settle the others; the level below, and whose children."""
        setting, plan, statistics = self.setting, self.setting.plan, grown.statistics
        split = np.flatnonzero(found.gain > 0).tolist()
        column = np.flatnonzero(grown.columns)[found.column] if split else found.column
        owner = {node: setting.owner(column[node]) for node in split}
        children = {
            node: self.growing.divide(nodes.number[node], owner[node], found.gain[node]) for node in split
        }
        sides = await self._ask(
            me, level, nodes, found, column, owner, grown, last=depth + 1 == plan.max_depth
        )
        lower, parents = below(level, sides, grown.drawing, plan.min_samples_split)
        if depth + 1 == plan.max_depth:
            lower, parents = Level([], [], ()), []
        for node, rows in enumerate(level.rows):
            output = nodes.output[node]
            if node not in owner:
                bounds = nodes.low[node], nodes.high[node]
                self._settle(nodes.number[node], output, rows, level.drawn[node], bounds, statistics)
            elif node not in parents:
                for at, half in enumerate((rows[sides[node]], rows[~sides[node]])):
                    drawn = grown.drawing.among(half)
                    bounds = found.low[node, at], found.high[node, at]
                    self._settle(children[node][at], output, half, drawn, bounds, statistics)
        number = [child for node in parents for child in children[node]]
        outputs = [nodes.output[node] for node in parents for _ in range(2)]
        return (
            lower,
            _Nodes(number, outputs, found.low[parents].ravel(), found.high[parents].ravel()),
            parents,
        )

    async def _ask(
        self,
        me: Coordinator,
        level: Level,
        nodes: _Nodes,
        found: Found,
        column: Array,
        owner: Mapping[int, int],
        grown: _Round,
        *,
        last: bool,
    ) -> dict[int, Array]:
        """Of each node that is split, which of its rows go left; all who need it know it then."""
        setting = self.setting
        wide = np.zeros((len(found.left), 256), bool)
        wide[:, : found.left.shape[1]] = found.left
        by = {
            side.party: [node for node, place in owner.items() if place == at]
            for at, side in enumerate(setting.sides)
        }
        for side in grown.active:
            mine = by[side.party]
            fate = np.full(len(level.rows), LEAF, np.uint8)
            fate[list(owner)] = OTHERS
            fate[mine] = YOURS
            numbers = (column[mine] - side.at.start).astype(np.uint32)
            await me.send(side.party, Divided(fate=fate, columns=numbers, left=to_bits(wide[mine])))
        sides = {}
        for node in by[setting.me]:
            number = np.array([column[node] - setting.at.start])
            split = Splits.new(number, wide[[node]], [len(level.drawn[node])])
            sides[node] = split.go_left(0, setting.codes, level.rows[node])
            self._splits.append(split)
        told = set()
        for side in grown.active:  # who waits for nobody else's answer is not made to
            others = [node for node in owner if node not in by[side.party]]
            if set(others) <= sides.keys():
                told.add(side.party)
                await self._tell(me, side, others, sides, last=last)
        for side in grown.active:
            if mine := by[side.party]:
                said = await me.recv(side.party, Sides)
                sides |= apart(said, [level.rows[node] for node in mine], mine, side.party)
                for node in mine:
                    drawn = grown.drawing.among(level.rows[node][sides[node]])
                    values = grown.values(drawn, setting.of_output(nodes.output[node]))
                    check_side(side.party, values, found.sums[node])
        for side in grown.active:
            if side.party not in told:
                others = [node for node in owner if node not in by[side.party]]
                await self._tell(me, side, others, sides, last=last)
        return sides

    async def _tell(
        self, me: Coordinator, side: Side, nodes: Sequence[int], sides: Mapping[int, Array], *, last: bool
    ) -> None:
        """Which rows go left in nodes that others split; below the last level nobody asks."""
        if nodes and not last:
            flags = np.concatenate([sides[node] for node in nodes])
            await me.send(side.party, Sides(left=to_bits(flags)))

    def _settle(
        self,
        node: int,
        output: int,
        rows: Array,
        drawn: Array,
        bounds: tuple[float, float],
        statistics: Quantised,
    ) -> None:
        """Make a node a leaf, and add its value to the outputs of all rows in it."""
        plan, at = self.setting.plan, [2 * output, 2 * output + 1]
        g, h = np.ldexp(statistics.values[drawn][:, at].sum(axis=0).astype(np.float64), -statistics.bits[at])
        value = plan.learning_rate * float(np.clip(weight(g, h, plan.l2_regularization), *bounds))
        self.growing.settle(node, value)
        self.raw[rows, output] += value


@dataclass(frozen=True)
class _Round:
    """What a round of trees is grown from."""

    statistics: Quantised
    drawing: Drawing
    columns: Array  # (all columns,) bool
    active: Sequence[Side]  # the feature parties that have one of these

    def own(self, setting: Setting) -> Array:
        """The label party's bins: (drawn columns, drawn rows)."""
        return setting.codes[self.columns[setting.at]][:, self.drawing.mask]

    def place(self, side: Side) -> slice:
        """Where a party's columns are among those of the round."""
        before = int(self.columns[: side.at.start].sum())
        return slice(before, before + int(self.columns[side.at].sum()))

    def values(self, drawn: Array, which: Sequence[int] | Array) -> Array:
        """These statistics of these drawn rows."""
        return self.statistics.values[drawn][:, which]


def _own_sums(codes: Array, values: Array, counts: Array, nodes: Sequence[Array]) -> Array:
    return np.stack([histogram(codes[:, rows], values[rows], counts) for rows in nodes])


def _with_siblings(sums: Array, level: Level, above: Above | None) -> Array:
    """(nodes, ...) from sums of one child of each pair, and of their parents."""
    if above is None:
        return sums
    full = np.empty((len(level.rows), *sums.shape[1:]), np.int64)
    summed = np.array(level.summed)
    full[summed] = sums
    full[summed ^ 1] = above.sums - sums  # children are in pairs
    return full
