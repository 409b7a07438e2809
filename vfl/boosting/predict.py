"""Predicting: every row down every tree, without anybody seeing another's columns or splits.

Takes part: the label party, which knows the trees' shapes and leaves, and each party that has splits.

Who learns what:
- "levels": an owner learns which rows reach which of its own splits, nothing of the rest of the trees; the
  label party learns each row's path. As many rounds as the deepest tree has levels, for all rows and trees.
- "bitmask": an owner learns nothing but which rows are asked for; the label party learns which way each row
  would go at every split, reached or not. One round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from protocols.arrays import Array
from protocols.errors import ProtocolError
from protocols.party import Coordinator, Party
from protocols.trees.bins import Bins, binned
from protocols.trees.forest import Forest, Splits, Walk
from vfl.alignment.roles import Aligned, align_feature, align_label
from vfl.boosting.messages import Arrived, Outcomes, Reached, Sides, from_bits, to_bits
from vfl.boosting.parameters import Boosting, PredictProtocol
from vfl.boosting.parts import Learnt, Owned, Table

CHUNK = 1 << 17  # rows on their way at once: they take 4 bytes a tree


async def predict_label(
    me: Coordinator, table: Table, owned: Owned, learnt: Learnt, plan: Boosting
) -> tuple[Array, Aligned]:
    """Align, then the raw outputs (k, outputs) float64 of the common rows, in their order."""
    peers = [party for party in learnt.forest.parties if party != me.name]
    async with me.within("align") as at:
        empty = plan.may_be_empty
        aligned = await align_label(at, peers, table.ids, protocol=plan.protocol, may_be_empty=empty)
    codes = await rows_in_bins(me, table, aligned, owned.bins)
    async with me.within("predict") as at:
        outputs = np.repeat(learnt.baseline[None], len(aligned.rows), axis=0)
        await ask(at, codes, owned.splits, learnt.forest, outputs, plan.predict_protocol)
    return outputs, aligned


async def predict_feature(me: Party, label_party: str, table: Table, owned: Owned, plan: Boosting) -> Aligned:
    """Align, then say of rows which way they go."""
    peers = [party for party in me.desk.parties if party != label_party]
    async with me.within("align") as at:
        aligned = await align_feature(at, label_party, peers, table.ids, protocol=plan.protocol)
    codes = await rows_in_bins(me, table, aligned, owned.bins)
    async with me.within("predict") as at:
        await answer(at, label_party, codes, owned.splits, plan.predict_protocol)
    return aligned


async def rows_in_bins(me: Party, table: Table, aligned: Aligned, bins: Sequence[Bins]) -> Array:
    """(columns, common rows) uint8."""
    columns = table.columns.iloc[aligned.rows]
    return await me.compute(binned, columns, bins, cost=20.0 * columns.size)


async def ask(
    me: Coordinator, codes: Array, splits: Splits, forest: Forest, outputs: Array, how: PredictProtocol
) -> None:
    """Add the leaf of each tree to `outputs` (rows, outputs). codes: (columns, rows), the label party's."""
    peers = [party for party in forest.parties if party != me.name]
    rows = codes.shape[1]
    for start in range(0, rows, CHUNK):
        async with me.within(start // CHUNK) as at:
            end = min(start + CHUNK, rows)
            walk, mine = Walk(forest, end - start), codes[:, start:end]
            cost = 4.0 * len(forest) * (end - start)
            known = await _everything(at, peers, forest, end - start) if how == "bitmask" else {}
            level = 0
            while waiting := await at.compute(walk.waiting, cost=cost):
                async with at.within(level) as here:
                    answers = {}
                    for owner, (split, row) in waiting.items():
                        party = forest.parties[owner]
                        if party == me.name:
                            answers[owner] = splits.go_left(split, mine, row)
                        elif party in known:
                            answers[owner] = known[party][split, row]
                        else:
                            await here.send(party, _reached(split, row, end - start))
                    for owner, (split, _) in waiting.items():
                        if owner not in answers:
                            party = forest.parties[owner]
                            said = await here.recv(party, Sides)
                            answers[owner] = from_bits(said.left, len(split), Sides.kind, party)
                    for party in peers if how == "levels" else ():
                        if forest.parties.index(party) not in waiting:
                            await here.send(party, _reached(np.zeros(0, np.int64), np.zeros(0, np.int64), 0))
                    await here.compute(walk.go, answers, cost=cost)
                level += 1
            async with at.within(level) as here:
                await here.broadcast(Arrived(), to=peers if how == "levels" else ())
            walk.add_to(outputs[start:end])


async def answer(me: Party, label_party: str, codes: Array, splits: Splits, how: PredictProtocol) -> None:
    """A feature party's counterpart of `ask`."""
    rows = codes.shape[1]
    for start in range(0, rows, CHUNK):
        async with me.within(start // CHUNK) as at:
            mine = codes[:, start : start + CHUNK]
            if how == "bitmask":
                cost = 2.0 * len(splits) * mine.shape[1]
                await at.send(label_party, await at.compute(_outcomes, splits, mine, cost=cost))
                continue
            level = 0
            while True:
                async with at.within(level) as here:
                    word = await here.recv(label_party, (Reached, Arrived))
                    if isinstance(word, Arrived):
                        break
                    if len(word.splits):
                        split, row = _pairs(word, len(splits), mine.shape[1], label_party)
                        cost = 4.0 * len(split)
                        left = await here.compute(splits.go_left, split, mine, row, cost=cost)
                        await here.send(label_party, Sides(left=to_bits(left)))
                level += 1


async def _everything(me: Coordinator, peers: list[str], forest: Forest, rows: int) -> Mapping[str, Array]:
    """Of each feature party, (its splits, rows) bool."""
    found = {}
    for party, said in (await me.gather(Outcomes, of=peers)).items():
        found[party] = from_bits(said.left, rows, Outcomes.kind, party)
        if len(said.left) < forest.splits(party):
            raise ProtocolError(
                f"{Outcomes.kind} from {party}: {len(said.left)} splits, expected {forest.splits(party)}; "
                "is its part of another training?"
            )
    return found


def _outcomes(splits: Splits, codes: Array) -> Outcomes:
    rows = np.arange(codes.shape[1])
    left = [to_bits(splits.go_left(split, codes, rows)) for split in range(len(splits))]
    return Outcomes(left=np.stack(left) if left else np.zeros((0, -(-len(rows) // 8)), np.uint8))


def _reached(split: Array, row: Array, rows: int) -> Reached:
    """The pairs, which are in order of split and row, as a row of bits for each split."""
    which, place = np.unique(split, return_inverse=True)
    there = np.zeros((len(which), rows), bool)
    there[place, row] = True
    return Reached(splits=which.astype(np.uint32), rows=to_bits(there))


def _pairs(word: Reached, splits: int, rows: int, sender: str) -> tuple[Array, Array]:
    if (word.splits >= splits).any():
        raise ProtocolError(
            f"{Reached.kind} from {sender}: a split that is not among the {splits} here; is the model's part "
            "of another training?"
        )
    place, row = np.nonzero(from_bits(word.rows, rows, Reached.kind, sender))
    return word.splits.astype(np.int64)[place], row
