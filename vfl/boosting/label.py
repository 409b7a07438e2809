"""The label party's part in growing trees: it alone knows gradients, gains and the trees' shapes.

Takes part: the label party; its counterpart is `vfl.boosting.feature`, and who learns what is said in
`vfl.boosting`. Without feature parties the same role trains on pooled columns: the reference for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from protocols.arrays import Array, Arrays
from protocols.data.tables import encode_labels, features, labels
from protocols.errors import DataError, ProtocolError, marked
from protocols.party import Coordinator
from protocols.randomness import philox
from protocols.trees.bins import MOST_BINS
from protocols.trees.forest import Forest, Growing, Splits
from protocols.trees.splits import Columns
from protocols.trees.sums import quantised
from vfl.alignment.roles import Aligned, align_label
from vfl.boosting.feature import check_outputs, described, divided
from vfl.boosting.grow import Grower
from vfl.boosting.losses import Loss
from vfl.boosting.messages import MOST_OUTPUTS, BinCounts, Drawn, Enough, TreeKey, to_bits
from vfl.boosting.nodes import Drawing, drawn_columns, drawn_rows, held_out
from vfl.boosting.parameters import Boosting
from vfl.boosting.parts import Classes, Learnt, Owned, Table
from vfl.boosting.predict import ask
from vfl.boosting.setting import Setting, Side
from vfl.weights import check_weights

MOST_GRADIENT = 1e100


async def label_party(
    me: Coordinator,
    peers: Sequence[str],
    table: Table,
    target: pd.Series,
    weights: Array | None,
    plan: Boosting,
    before: tuple[Owned, Learnt] | None = None,
) -> tuple[Owned, Learnt, Aligned]:
    """Align, then grow trees. weights: of each row of the table. before: a model that is to be continued."""
    async with me.within("align") as at:
        aligned = Aligned(np.arange(table.ids.total), table.ids.total, 0, None)
        if peers:
            aligned = await align_label(at, peers, table.ids, protocol=plan.protocol)
    with marked(me.name, "setup"):
        y, loss, classes = _target(target.iloc[aligned.rows], plan, before)
        check_outputs(table.monotone, loss.outputs)
        w = np.ones(len(y)) if weights is None else weights[aligned.rows]
        # Who goes on judges by rows that were not learnt from before.
        validation = me.key("validation") if before is None else before[1].held_out
        kept = ~held_out(philox(validation), plan, len(y))
        learning, judging = kept & (w > 0), ~kept & (w > 0)
        _check_rows(y, loss, classes, learning, judging, plan)
        check_weights(w[kept])
    # Before the first round, which may take minutes: whoever watches would still see the alignment.
    me.progress("trees", max(me.resumed()[0], plan.begin), plan.n_estimators)
    bins, codes = await divided(me, table, aligned, plan, None if before is None else before[0])
    setting = await _set_up(me, peers, described(bins, table.monotone), codes, plan, loss)
    if before is None:
        splits, forest = Splits.empty(), Forest.empty(me.desk.parties)
        baseline = loss.baseline(y[learning], w[learning])
    else:
        splits, baseline = before[0].splits, before[1].baseline
        forest = before[1].forest.among(me.desk.parties)
    grower = Grower(setting, Growing(forest), splits, np.repeat(baseline[None], len(y), axis=0))
    model = _Trained(grower, baseline)
    steps = me.steps(plan.n_estimators, model, begin=plan.begin, progress="trees")
    if before is not None and not steps.resumed:
        async with me.within("before") as at:
            await ask(at, codes, splits, forest, grower.raw, plan.predict_protocol)
        if plan.early_stopping:
            # What comes next is held against the model as it is on the rows that are held out now.
            now = loss.mean(y[judging], grower.raw[judging], w[judging])
            model.scores = [*_earlier(before[1].scores, plan.begin), now]
    for step in steps:
        async with step as at:
            if _is_enough(model.scores, plan):
                await at.broadcast(Enough(rounds=_best(model.scores, plan)), to=peers)
                step.leave_out()
                break
            g, h = await at.compute(loss.derivatives, y, grower.raw, cost=20.0 * grower.raw.size)
            mask, factor = drawn_rows(at.rng("rows"), plan, learning, g * w[:, None])
            columns = drawn_columns(at.rng("columns"), plan, len(setting.columns.counts))
            if plan.complete_secure and step.number == 0:
                columns = setting.own
            for side in setting.peers:
                await at.send(side.party, Drawn(rows=to_bits(mask), columns=columns[side.at]))
            scale = (w * factor)[mask][:, None]
            g, h = g[mask] * scale, h[mask] * scale
            _check_sizes(g, h)
            statistics = quantised(g, h, plan.gradient_bits)
            await grower.round(at, statistics, Drawing(mask), columns, last=step.is_last)
            if plan.early_stopping:
                model.scores.append(loss.mean(y[judging], grower.raw[judging], w[judging]))
    else:
        if plan.early_stopping:
            async with me.within("end") as at:
                await at.broadcast(Enough(rounds=_best(model.scores, plan)), to=peers)
    forest, splits = grower.growing.done(), grower.splits
    if plan.early_stopping:
        forest = forest.first(_best(model.scores, plan) * loss.outputs)
        splits = splits.first(forest.splits(me.name))
    learnt = Learnt(forest, model.baseline, loss, classes, np.array(model.scores), validation)
    return Owned(bins, splits), learnt, aligned


@dataclass
class _Trained:
    """What training goes on from: the trees, what they say of all rows, and how each round did."""

    grower: Grower
    baseline: Array
    scores: list[float] = field(default_factory=list)

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        scores = np.array(self.scores, np.float64)
        return Arrays({**self.grower.arrays(), "baseline": self.baseline, "scores": scores})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave."""
        self.grower.restore(state)
        self.baseline, self.scores = state["baseline"], state["scores"].tolist()


async def _set_up(
    me: Coordinator,
    peers: Sequence[str],
    own: BinCounts,
    codes: Array,
    plan: Boosting,
    loss: Loss,
) -> Setting:
    """A key of this run's own, and what all parties say of their columns, in roster order."""
    async with me.within("setup") as at:
        key = None
        if plan.scheme is not None and peers:
            key = await at.compute(plan.scheme.new_key, cost={"paillier_decrypt": 50})
        said = TreeKey(key=b"" if key is None else key.to_bytes(), outputs=loss.outputs)
        await at.broadcast(said, to=peers)
        told = {**await at.gather(BinCounts, of=peers), me.name: own}
    sides, start = [], 0
    for party in me.desk.parties:
        end = start + len(told[party].bins)
        sides.append(Side(party, slice(start, end)))
        start = end
    every = [told[side.party] for side in sides]
    columns = Columns(
        np.concatenate([one.bins for one in every]).astype(np.int64),
        np.concatenate([one.categorical for one in every]),
        np.concatenate([one.monotone for one in every]),
    )
    for party in peers:
        most = int(told[party].bins.max(initial=0))
        if most > (MOST_BINS if plan.begin else plan.max_bins):
            raise ProtocolError(
                f"{BinCounts.kind} from {party}: a column of {most} bins, expected at most {plan.max_bins}"
            )
    if not (np.abs(columns.monotone) <= 1).all() or (columns.monotone[columns.categorical] != 0).any():
        raise ProtocolError(f"{BinCounts.kind}: a monotone constraint that is none, or on categories")
    return Setting(plan, me.name, codes, tuple(sides), columns, key, loss.outputs)


def _target(
    values: pd.Series, plan: Boosting, before: tuple[Owned, Learnt] | None
) -> tuple[Array, Loss, Classes | None]:
    """The common rows' labels from 0 on, or numbers; the loss; the classes."""
    if plan.kind == "regression":
        y = features(values.to_frame())[:, 0]
        if plan.loss == "poisson" and (negative := int((y < 0).sum())):
            raise DataError(f"{negative} of {len(y)} targets are below 0; a Poisson model needs counts")
        return y, Loss(plan.loss), None
    classes = labels(values)
    if before is not None and classes != before[1].classes:
        raise DataError(
            f"the common rows have other classes than the {len(before[1].classes or [])} of the model that "
            "is continued; train anew"
        )
    if len(classes) < 2:
        raise DataError(
            f"the {len(values)} common rows are all of one class; rows of another have to be shared too"
        )
    if len(classes) > MOST_OUTPUTS:
        raise DataError(
            f"the target has {len(classes)} classes, each with trees of its own, expected at most "
            f"{MOST_OUTPUTS}; is it a number for a regressor?"
        )
    loss = Loss("logistic") if len(classes) == 2 else Loss("softmax", len(classes))
    return encode_labels(values, classes), loss, classes


def _check_rows(
    y: Array, loss: Loss, classes: Classes | None, learning: Array, judging: Array, plan: Boosting
) -> None:
    """DataError where there is nothing to learn from, or to judge by."""
    for mask, what in ((learning, "learn from"), *([(judging, "judge by")] if plan.early_stopping else [])):
        if not mask.any():
            raise DataError(f"of {len(y)} common rows none is left to {what}; share more, or weigh more")
    if classes is None:
        return
    absent = [said for code, said in enumerate(classes) if not (y[learning] == code).any()]
    if absent:
        where = "the rows held out for validation" if judging.any() else "rows of weight 0"
        raise DataError(
            f"class {absent[0]!r} is only among {where}; hold out fewer, or bring more rows of it"
        )


def _check_sizes(g: Array, h: Array) -> None:
    """DataError where squares of sums of these would leave the range of a float."""
    large = ~((np.abs(g) < MOST_GRADIENT) & (h < MOST_GRADIENT)).all(axis=1)  # NaN counts too
    if large.any():
        raise DataError(
            f"the gradients of {int(large.sum())} of {len(g)} rows are beyond 1e100: training runs off; use "
            "smaller targets or weights, a lower learning_rate or more l2_regularization"
        )


def _earlier(scores: Array, begin: int) -> list[float]:
    """The losses after all rounds but the last of a model that is continued; NaN where none was computed."""
    known: list[float] = scores[: begin - 1].tolist()
    return known + [float("nan")] * (begin - 1 - len(known))


def _best(scores: Sequence[float], plan: Boosting) -> int:
    """After how many rounds the loss of the rows held out was lowest, by more than `tol`; rounds of a model
    that is continued are all kept."""
    best = max(plan.begin - 1, 0)
    for at in range(best, len(scores)):
        if scores[at] < scores[best] - plan.tol:
            best = at
    return best + 1


def _is_enough(scores: Sequence[float], plan: Boosting) -> bool:
    return plan.early_stopping and len(scores) >= _best(scores, plan) + plan.n_iter_no_change
