"""A feature party that makes up its columns anew at every node, to name labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.hazmat.paillier import EncryptedArray, concatenated
from protocols.party import Party, Role
from protocols.psi.ids import canonical
from tests.vfl.boosting.boosted import roles
from vfl.alignment.roles import align_feature
from vfl.boosting.messages import (
    LEAF,
    OTHERS,
    YOURS,
    BinCounts,
    ClearGradients,
    ClearSums,
    Divided,
    Drawn,
    SealedGradients,
    SealedSums,
    Sides,
    TreeKey,
    from_bits,
    to_bits,
)
from vfl.boosting.nodes import Drawing, Level, below, roots
from vfl.boosting.parameters import Boosting
from vfl.boosting.sums import take

# Of each column, (bins + 1, rows of the table): how often each row counts in each bin, that of gaps first.
Claim = list[Array]


def goes_left(rows: Array, claim: Array, left: Array) -> Array:
    """Which of these rows count in a bin that goes left."""
    return np.asarray(claim[left][:, rows].any(axis=0))


@dataclass
class Tactic:
    """What a cheat says. Every row of the table is drawn.

    claim: of a node with these rows. side: of a node with these rows, and what was claimed of the column by
    which it is split: which rows go left where these bins do; by default those that count in one of the bins.
    """

    bins: Sequence[int]
    claim: Callable[[Array], Claim]
    side: Callable[[Array, Array, Array], Array] = goes_left
    categorical: bool = False
    told: list[tuple[Claim, int, Array]] = field(default_factory=list)  # (claim, column, which bins go left)


def cheated(table: pd.DataFrame, y: pd.Series, settings: Boosting, tactic: Tactic) -> dict[str, Role]:
    """A bank with `table` and labels, and a shop that cheats."""
    honest = roles({"bank": table, "shop": table.iloc[:, :0]}, y, settings)
    return {"bank": honest["bank"], "shop": lambda me: _cheat(me, len(y), settings, tactic)}


async def _cheat(me: Party, rows: int, plan: Boosting, tactic: Tactic) -> None:
    ids = canonical(pd.Series([f"{row:06d}" for row in range(rows)]))
    async with me.within("align") as at:
        await align_feature(at, "bank", ["shop"], ids, protocol=plan.protocol)
    async with me.within("setup") as at:
        word = await at.recv("bank", TreeKey)
        key = None if plan.scheme is None else plan.scheme.key_from_bytes(word.key)
        many = len(tactic.bins)
        await at.send(
            "bank",
            BinCounts(
                bins=np.array(tactic.bins, np.uint8),
                categorical=np.full(many, tactic.categorical),
                monotone=np.zeros(many, np.int8),
            ),
        )
    async with me.within("fit") as fit:
        for round_ in range(plan.n_estimators):
            async with fit.within(round_) as at:
                drawn = await at.recv("bank", Drawn)
                drawing = Drawing(from_bits(drawn.rows, rows, Drawn.kind, "bank"))
                kind: Any = ClearGradients if key is None else SealedGradients
                message: Any = await at.recv("bank", kind)
                shape = rows, 2 * word.outputs + 1
                statistics = take(message, key, shape, plan.gradient_bits, rows)
                level = roots(word.outputs, drawing, plan.min_samples_split)
                for depth in range(plan.max_depth):
                    async with at.within(depth) as here:
                        level = await _level(here, plan, tactic, statistics, level, drawing, depth)
                    if not level.rows:
                        break


async def _level(
    me: Party, plan: Boosting, tactic: Tactic, statistics: Any, level: Level, drawing: Drawing, depth: int
) -> Level:
    claims = [tactic.claim(rows) for rows in level.rows]
    bins = np.concatenate([column for node in level.summed for column in claims[node]])
    await me.send("bank", added_up(statistics, bins))
    word = await me.recv("bank", Divided)
    mine, others = (np.flatnonzero(word.fate == fate).tolist() for fate in (YOURS, OTHERS))
    left = np.unpackbits(word.left, axis=1).astype(bool)
    sides = {}
    for at, node in enumerate(mine):
        column = int(word.columns[at])
        tactic.told.append((claims[node], column, left[at, : tactic.bins[column] + 1]))
        sides[node] = tactic.side(level.rows[node], claims[node][column], tactic.told[-1][2])
    if mine:
        await me.send("bank", Sides(left=to_bits(np.concatenate([*sides.values()]))))
    if depth + 1 == plan.max_depth or not (word.fate != LEAF).any():
        return Level([], [], ())
    if others:
        said = await me.recv("bank", Sides)
        sizes = [len(level.rows[node]) for node in others]
        flags = from_bits(said.left, sum(sizes), Sides.kind, "bank")
        sides |= dict(zip(others, np.split(flags, np.cumsum(sizes)[:-1]), strict=True))
    return below(level, sides, drawing, plan.min_samples_split)[0]


def added_up(statistics: Any, bins: Array) -> ClearSums | SealedSums:
    """Sums of rows as often as they count: (bins, rows)."""
    if not isinstance(statistics, EncryptedArray):
        return ClearSums(values=bins @ statistics)
    nothing = statistics[:1].bucket_sum(np.ones(1, np.int64), 2)[:1]
    parts = [np.repeat(np.arange(len(one)), one) for one in bins]
    sums = [statistics[part].bucket_sum(0 * part, 1) if len(part) else nothing for part in parts]
    words, head = concatenated(sums).packed().dump()
    return SealedSums(words=words, head=head)
