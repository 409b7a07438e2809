"""A linear model with exact loss: the label party sees sums of scores, residuals leave it encrypted.

Takes part: the label party, which may have columns too, and one or more feature parties, each with the
coefficients of its own columns. After alignment, for every batch:

    feature parties -> label party   PartialScores     X_k w_k, in fixed point, under pairwise masks
    label party -> feature parties   SealedResiduals   [[r]] under the label party's key
    feature party -> label party     MaskedGradient    [[X_k^T r + mask]]
    label party -> feature party     OpenedGradient    X_k^T r + mask

`solver="sgd"` does so for each mini-batch, and each party steps by itself. `solver="lbfgs"` takes all rows
at once: what is told of scores is those of each new gradient, from which the label party knows the scores of
any step, and searches along it alone. A feature party adds inner products of its own vectors, the label
party answers with a `Move`: how they combine, and how far. Still four messages that wait for each other.

Who learns what:
- The label party learns for every common row the sum of the feature parties' scores: of one feature party
  its score, at every step. From as many different scores as a feature party has columns it can tell the
  table up to a linear map, and with knowledge of some rows, all of it (Luo et al. 2021).
- It learns the inner products of each feature party's gradients and steps (`InnerProducts`), and how many
  columns each has. Not the coefficients.
- A feature party learns the gradient of its own columns over every batch, exactly. From a batch with no more
  rows than columns the residuals follow, and so the labels: batches of fewer than 10 rows a column are
  refused, by the feature party itself and by the label party, for which rows of weight 0 do not count; and
  by the feature party columns with few rows behind their gradient (`vfl.linear.groups`). Many batches of few
  rows are as many equations; see the guide.
- A feature party learns how steps combine and how far they go (`Move`), and the order of rows: a few numbers
  a step, which depend on everybody's columns. Of each other feature parties learn nothing besides.
- Predicting shows the label party the same sums, and takes exactly the parties of the training: of fewer
  feature parties each would have less to hide in.

Semi-honest parties; `vfl.linear.gradient` says what a feature party that cheats reads. A label party that
cheats chooses the gradients that others are told, and so reads a column of one of them a step: it lets that
one alone move. All feature parties but one, if they collude with the label party, uncover that one's scores.
Sources: Hardy et al. 2017; Yang et al. 2019 (quasi-Newton vertical logistic regression);
`vfl.linear.line_search`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from protocols.arrays import Array
from protocols.data.tables import Scaler
from protocols.errors import ConfigError, ProtocolError, marked
from protocols.hazmat.paillier.array import Key
from protocols.party import Coordinator, Party
from protocols.psi import choose
from protocols.randomness import philox
from protocols.sums.masked import Masks, agree, total
from vfl.alignment.roles import Aligned, align_feature, align_label
from vfl.linear import hidden, lbfgs, proximal, sgd
from vfl.linear.columns import Columns
from vfl.linear.losses import LOSSES
from vfl.linear.messages import LinearStart, PartialScores
from vfl.linear.parameters import VerticalLinear
from vfl.linear.parts import Head, Linear, Table, Target
from vfl.linear.rows import Answers, answers, held_out_count, loss_name, prepared, smallest_batch
from vfl.linear.shared_gradient import meet
from vfl.linear.state import FeatureSide, LabelSide, Solved

CHUNK = 1 << 16  # rows that one message carries when predicting


async def label_party(
    me: Coordinator,
    peers: Sequence[str],
    table: Table,
    target: Target,
    start: tuple[Linear, Head] | None,
    plan: VerticalLinear,
) -> tuple[Linear, Head, Aligned]:
    """Align, then train: its own coefficients, and what the label party alone learns.

    start: what an earlier training of the same columns gave.
    """
    async with me.within("align") as at:
        aligned = await align_label(at, peers, table.ids, protocol=plan.protocol)
    with marked(me.name, "setup"):
        # Who goes on judges by rows that were not learnt from before.
        validation = me.key("validation") if start is None else start[1].held_out
        held_out = _held_out(validation, len(aligned.rows), plan)
        me.guard.group(smallest_batch(len(aligned.rows) - len(held_out), plan))
        known = answers(target, aligned.rows, held_out, plan)
        x, hidden_too = table.x[aligned.rows], plan.security == "hidden"
        learns = len(table.names) + 1 if hidden_too else 0  # the intercept's, too
        scaler, own = prepared(x, table.names, held_out, plan, me.guard, learns=learns)
        values = np.column_stack([own.values, np.ones(len(own.values))])
        columns = Columns(values, own.training, table.names)
        begun = _label_start(start, scaler, known)
    # Before the first step, which may take minutes: whoever watches would still see the alignment.
    me.progress("epochs" if plan.solver == "sgd" else "iterations", me.resumed()[0], plan.max_iter)
    key = await me.compute(new_key, plan, cost=1e9)
    async with me.within("setup") as at:
        said = LinearStart(key=key.to_bytes(), outputs=known.y.shape[1], held_out=held_out.astype(np.uint32))
        await at.broadcast(said, to=peers)
        mesh = await meet(at, peers, key, plan) if plan.security == "hidden" else None
    side = LabelSide(tuple(peers), key, columns, begun, known, plan, mesh)
    solved = await _solver(plan).lead(me, side)
    fitted = Linear(scaler, solved.coef[:-1])
    head = Head(
        intercept=solved.coef[-1],
        classes=known.classes,
        scaler=known.scaler,
        steps=solved.steps,
        converged=solved.converged,
        losses=solved.losses,
        held_out=validation,
    )
    return fitted, head, aligned


async def feature_party(
    me: Party, label_party: str, table: Table, start: Linear | None, plan: VerticalLinear
) -> tuple[Linear, Aligned]:
    """Align, then train this party's coefficients."""
    everybody = feature_parties(me, label_party)
    async with me.within("align") as at:
        aligned = await align_feature(at, label_party, everybody, table.ids, protocol=plan.protocol)
    async with me.within("setup") as at:
        said = await at.recv(label_party, LinearStart)
        held_out = _checked(said, len(aligned.rows), plan)
        at.guard.group(smallest_batch(len(aligned.rows) - len(held_out), plan))
        if len(held_out):
            learning = table.ids.at(np.delete(aligned.rows, held_out))
            await at.compute(at.guard.learns, learning, cost=0.0)
        x = table.x[aligned.rows]
        scaler, columns = prepared(x, table.names, held_out, plan, at.guard, learns=len(table.names))
        key: Key = await at.compute(plan.keys.key_from_bytes, said.key, cost=1e8)
        masks = await agree(at, everybody)
        mesh = None
        if plan.security == "hidden":
            own = await at.compute(new_key, plan, cost=1e9)
            mesh = await meet(at, [party for party in me.desk.parties if party != me.name], own, plan)
    begun = np.zeros((columns.count, said.outputs)) if start is None else moved(start, scaler, said.outputs)
    side = FeatureSide(
        label_party=label_party,
        key=key,
        columns=columns,
        start=begun,
        masks=masks,
        plan=plan,
        loss=LOSSES[loss_name(plan, said.outputs)],
        mesh=mesh,
    )
    return Linear(scaler, await _solver(plan).follow(me, side)), aligned


class _Solver(Protocol):
    """A way to minimise: both ends."""

    async def lead(self, me: Coordinator, side: LabelSide) -> Solved:
        """The label party's."""

    async def follow(self, me: Party, side: FeatureSide) -> Array:
        """A feature party's."""


def _solver(plan: VerticalLinear) -> _Solver:
    if plan.solver == "sgd":
        return sgd
    if plan.l1:
        return proximal
    return hidden if plan.security == "hidden" else lbfgs


async def predict_feature(
    me: Party, label_party: str, table: Table, fitted: Linear, protocol: choose.Protocol = "auto"
) -> Aligned:
    """Align, then send this party's part of the scores of the common rows."""
    everybody = feature_parties(me, label_party)
    async with me.within("align") as at:
        aligned = await align_feature(at, label_party, everybody, table.ids, protocol=protocol)
    async with me.within("predict") as at:
        masks = await agree(at, everybody)
        for rows in _chunks(aligned.rows):
            cost = 2.0 * len(rows) * fitted.coef.size
            scores = await at.compute(_masked, masks, fitted, table.x[rows], cost=cost)
            await at.send(label_party, PartialScores(scores=scores))
    return aligned


async def predict_label(
    me: Coordinator,
    peers: Sequence[str],
    table: Table,
    fitted: Linear,
    head: Head,
    protocol: choose.Protocol = "auto",
    *,
    may_be_empty: bool,
) -> tuple[Array, Aligned]:
    """Align, then the scores (k, outputs) float64 of the common rows, in their order."""
    async with me.within("align") as at:
        aligned = await align_label(at, peers, table.ids, protocol=protocol, may_be_empty=may_be_empty)
    outputs = len(head.intercept)
    done = [np.zeros((0, outputs))]
    async with me.within("predict") as at:
        for rows in _chunks(aligned.rows):
            came = await at.gather(PartialScores, of=peers)
            cost = 2.0 * len(rows) * fitted.coef.size
            own = await at.compute(fitted, table.x[rows], cost=cost)
            others = total({peer: said.scores for peer, said in came.items()}, (len(rows), outputs))
            done.append(own + others + head.intercept)
    return np.concatenate(done), aligned


def new_key(plan: VerticalLinear) -> Key:
    """A private key, or what stands for one."""
    return plan.keys.new_key()


def feature_parties(me: Party, label_party: str) -> list[str]:
    """All feature parties, this one among them."""
    return [party for party in me.desk.parties if party != label_party]


def _masked(masks: Masks, fitted: Linear, x: Array) -> Array:
    return masks(fitted(x))


def _chunks(rows: Array) -> Iterator[Array]:
    for begin in range(0, len(rows), CHUNK):
        yield rows[begin : begin + CHUNK]


def _held_out(key: int, rows: int, plan: VerticalLinear) -> Array:
    """Which common rows are for validation, ascending."""
    count = held_out_count(rows, plan)
    return np.sort(philox(key).permutation(rows)[:count]) if count else np.zeros(0, np.int64)


def _checked(said: LinearStart, rows: int, plan: VerticalLinear) -> Array:
    """Which common rows are held out. ProtocolError for a start that the plan does not lead to."""
    held_out = said.held_out.astype(np.int64)
    expected = held_out_count(rows, plan)
    if len(held_out) != expected or len(np.unique(held_out)) != expected or (held_out >= rows).any():
        raise ProtocolError(
            f"{said.kind}: expected {expected} different ones of {rows} common rows to be held out, got "
            f"{len(held_out)}, or the same twice, or others"
        )
    most = rows if plan.family == "logistic" and plan.security != "hidden" else 1
    if said.outputs == 2 or said.outputs > most:  # two classes have one output
        raise ProtocolError(
            f"{said.kind}: {said.outputs} outputs are none that such a model of {rows} rows has"
        )
    return held_out


def _label_start(start: tuple[Linear, Head] | None, scaler: Scaler, known: Answers) -> Array:
    """Coefficients to begin with, the intercept's last."""
    outputs, training = known.y.shape[1], slice(0, known.training)
    if start is None:
        intercept = known.loss.start(known.y[training], known.weights[training])
        return np.vstack([np.zeros((len(scaler.mean), outputs)), intercept])
    fitted, head = start
    if head.classes != known.classes:
        raise ConfigError("the classes are not those of the training to start from; set warm_start=False")
    return np.vstack([moved(fitted, scaler, outputs), head.intercept])


def moved(fitted: Linear, scaler: Scaler, outputs: int) -> Array:
    """Earlier coefficients, of columns that are standardised anew.

    Raises ConfigError if they are of other columns or outputs.
    """
    if fitted.coef.shape != (len(scaler.mean), outputs):
        raise ConfigError(
            f"coefficients to start from should be {[len(scaler.mean), outputs]}, got "
            f"{list(fitted.coef.shape)}; set warm_start=False"
        )
    return np.asarray(fitted.coef * (scaler.scale / fitted.scaler.scale)[:, None])
