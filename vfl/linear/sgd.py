"""Mini-batch gradient descent: both ends. Who says what and learns what is told in `exact` and `hidden`.

Each party steps by itself: with momentum, and with the proximal step of l1 (soft thresholding) after each.
Batches are even parts of a random order that the label party draws for each epoch, so that none is small.
"""

from __future__ import annotations

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.errors import DataError
from protocols.party import Coordinator, Party
from protocols.sums.masked import total
from vfl.linear.gradient import Sealer, Sums
from vfl.linear.line_search import Patience
from vfl.linear.messages import Move, PartialScores
from vfl.linear.rows import batches
from vfl.linear.state import FeatureSide, LabelSide, Solved
from vfl.linear.whole import Batches
from vfl.order import Order, positions


class Descent:
    """One owner's coefficients (d, outputs) on their way down."""

    def __init__(self, side: LabelSide | FeatureSide) -> None:
        self.x, self.coef, self._plan = side.columns, side.start, side.plan
        self._penalised = side.penalised.astype(np.float64)[:, None]
        self._velocity = np.zeros_like(side.start)
        self.best, self.more = side.start, True
        tells = isinstance(side, LabelSide) or side.mesh is not None  # of its own residuals
        self.told = Batches((self.x.training if tells else 0, side.start.shape[1]))

    def step(self, summed: Array, rows: int) -> None:
        """One batch's: `summed` is X^T r (d, outputs) over so many rows."""
        p = self._plan
        gradient = summed / rows + p.l2 * self._penalised * self.coef
        self._velocity = p.momentum * self._velocity + gradient
        moved = self.coef - p.learning_rate * self._velocity
        if not np.isfinite(moved).all():
            raise DataError("training diverged: coefficients are not finite; lower the learning rate")
        most = p.learning_rate * p.l1 * self._penalised
        self.coef = np.sign(moved) * np.maximum(np.abs(moved) - most, 0.0)

    def scores(self, rows: Array | slice) -> Array:
        """Of `rows` (b, outputs)."""
        return np.asarray(self.x.values[rows] @ self.coef)

    def end(self, move: Move) -> None:
        """Of an epoch."""
        self.best = self.coef if move.best else self.best
        self.coef = self.best if move.restore else self.coef
        self.more = move.more

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        held = {"coef": self.coef, "velocity": self._velocity, "best": self.best}
        copies = {name: np.array(a) for name, a in held.items()}
        return Arrays(copies | self.told.arrays() | {"more": np.array([self.more], np.int64)})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns."""
        if state["coef"].shape != self.coef.shape:
            raise DataError(f"the checkpoint is not of this model: expected {list(self.coef.shape)}")
        self.coef, self._velocity, self.best = state["coef"], state["velocity"], state["best"]
        self.told.restore(state)
        self.more = bool(state["more"][0])


async def lead(me: Coordinator, side: LabelSide) -> Solved:
    """The label party's end. In hidden mode it knows no loss."""
    run = _Leading(side)
    steps = me.steps(side.plan.max_iter, run, progress="epochs")
    for step in steps:
        if not run.descent.more:
            break
        async with step as at:
            order = at.rng("batches").permutation(side.answers.training)
            await at.broadcast(Order(rows=order.astype(np.uint32)), to=side.peers)
            parts = [*batches(order, side.plan.batch_size)]
            if side.mesh is not None:  # else it learns nothing that it does not know
                cost = 20.0 * side.columns.values.size
                await at.compute(side.columns.check, parts, at.guard, cost=cost)
            for rows in parts:
                if side.mesh is None:
                    summed = await _exact(at, side, run, rows)
                else:
                    share = side.loss.residual(run.descent.scores(rows), side.answers.y[rows])
                    told = run.descent.told.tell(share, rows)
                    summed = await side.mesh.gradient(at, side.columns.factors(rows), told)
                await at.compute(run.descent.step, summed, len(rows), cost=4.0 * summed.size)
            held_out = slice(side.answers.training, None)
            z = await _scores(at, side, run.descent, held_out) if side.plan.early_stopping else None
            move = run.judge(z, step.is_last)
            await at.broadcast(move, to=side.peers)
            run.descent.end(move)
    converged = not run.descent.more and steps.done < side.plan.max_iter
    return Solved(run.descent.coef, steps.done, converged, run.losses)


async def follow(me: Party, side: FeatureSide) -> Array:
    """A feature party's end: its coefficients (d, outputs)."""
    x, owner, descent = side.columns, side.label_party, Descent(side)
    for step in me.steps(side.plan.max_iter, descent):
        if not descent.more:
            break
        async with step as at:
            order = positions(await at.recv(owner, Order), x.training, owner)
            parts = [*batches(order, side.plan.batch_size)]
            await at.compute(x.check, parts, at.guard, cost=20.0 * x.values.size)
            for rows in parts:
                cost = 2.0 * len(rows) * side.start.size
                z = await at.compute(descent.scores, rows, cost=cost)
                if side.mesh is None:
                    await at.send(owner, PartialScores(scores=await at.compute(side.masks, z, cost=cost)))
                    summed = await Sums(side.key, x.factors(rows), side.outputs).ask(at, owner)
                else:
                    share = descent.told.tell(side.loss.curvature * z, rows)
                    summed = await side.mesh.gradient(at, x.factors(rows), share)
                await at.compute(descent.step, summed, len(rows), cost=4.0 * summed.size)
            if side.plan.early_stopping:
                z = descent.scores(slice(x.training, None))
                await at.send(owner, PartialScores(scores=await at.compute(side.masks, z, cost=0.0)))
            descent.end(await at.recv(owner, Move))
    return descent.coef


async def _scores(at: Coordinator, side: LabelSide, descent: Descent, rows: Array | slice) -> Array:
    """All parties' scores of `rows`, (b, outputs)."""
    own = await at.compute(descent.scores, rows, cost=2.0 * side.columns.values[rows].size)
    came = await at.gather(PartialScores, of=side.peers)
    return own + total({peer: said.scores for peer, said in came.items()}, own.shape)


async def _exact(at: Coordinator, side: LabelSide, run: _Leading, rows: Array) -> Array:
    """X^T r of its own columns; the others get theirs."""
    with side.key.filling(len(rows)):
        z = await _scores(at, side, run.descent, rows)
    run.summed_loss += side.summed_loss(z, rows)
    residuals = run.descent.told.tell(side.residuals(z, rows), rows)
    await Sealer(side.key, residuals, side.counted(rows)).serve(at, side.peers)
    return np.asarray(side.columns.values[rows].T @ residuals.values)


class _Leading:
    """The label party's own columns, and what it knows of how training goes."""

    def __init__(self, side: LabelSide) -> None:
        self.side, self.descent = side, Descent(side)
        self.patience = Patience(side.plan.n_iter_no_change)
        self.losses: list[float] = []
        self.summed_loss = 0.0  # of this epoch

    def judge(self, held_out: Array | None, last: bool) -> Move:
        """What ends an epoch; `held_out`: scores of the rows held out, if there are any."""
        if self.side.mesh is None:
            self.losses.append(self.summed_loss / self.side.answers.training)  # weights have a mean of 1
            self.summed_loss = 0.0
        best, over = False, False
        if held_out is not None:
            rows = slice(self.side.answers.training, None)
            best = self.patience.better(self.side.mean_loss(held_out, rows))
            over = self.patience.over
        more = not last and not over
        restore = held_out is not None and not more and not best
        return Move(coefficients=np.zeros(0), step=0.0, more=more, best=best, restore=restore)

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        held = {"losses": np.array(self.losses), "patience": self.patience.array()}
        return Arrays({**self.descent.snapshot(), **held})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns."""
        self.descent.restore(state)
        self.losses = state["losses"].tolist()
        best, since = state["patience"].tolist()
        self.patience = Patience(self.side.plan.n_iter_no_change, best, int(since))
