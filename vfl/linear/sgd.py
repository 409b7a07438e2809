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
from vfl.linear.columns import Columns
from vfl.linear.gradient import Sealer, Sums
from vfl.linear.line_search import Patience
from vfl.linear.messages import Move, PartialScores
from vfl.linear.plan import Plan, batches
from vfl.linear.state import FeatureSide, LabelSide, Solved
from vfl.linear.whole import Batches
from vfl.order import Order, positions


class Descent:
    """One owner's coefficients (d, outputs) on their way down."""

    def __init__(self, x: Columns, start: Array, penalised: Array, plan: Plan) -> None:
        self.x, self.coef, self._plan = x, start, plan
        self._penalised = penalised.astype(np.float64)[:, None]
        self._velocity = np.zeros_like(start)
        self.best, self.more = start, True

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

    def state(self) -> dict[str, Array]:
        """All that goes on from here."""
        held = {"coef": self.coef, "velocity": self._velocity, "best": self.best}
        return {name: np.array(a) for name, a in held.items()} | {"more": np.array([self.more], np.int64)}

    def restore(self, state: Arrays) -> None:
        """Take up what `state` gave. DataError if it is of other columns."""
        if state["coef"].shape != self.coef.shape:
            raise DataError(f"the checkpoint is not of this model: expected {list(self.coef.shape)}")
        self.coef, self._velocity, self.best = state["coef"], state["velocity"], state["best"]
        self.more = bool(state["more"][0])


async def lead(me: Coordinator, side: LabelSide) -> Solved:
    """The label party's end. In hidden mode it knows no loss."""
    run = _Leading(side)
    done, state = me.resumed()
    if state is not None:
        run.restore(state)
    async with me.within("fit") as fit:
        for epoch in range(done, side.plan.max_iter if run.descent.more else done):
            async with fit.within(epoch) as at:
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
                        summed = await side.mesh.gradient(
                            at, side.columns.factors(rows), run.told.tell(share, rows)
                        )
                    await at.compute(run.descent.step, summed, len(rows), cost=4.0 * summed.size)
                held_out = slice(side.answers.training, None)
                z = await _scores(at, side, run.descent, held_out) if side.plan.early_stopping else None
                move = run.judge(z, last=epoch + 1 == side.plan.max_iter)
                await at.broadcast(move, to=side.peers)
                run.descent.end(move)
            me.checkpoint(epoch + 1, run.state)
            me.progress("epochs", epoch + 1, side.plan.max_iter)
            done = epoch + 1
            if not run.descent.more:
                break
    return Solved(run.descent.coef, done, not run.descent.more and done < side.plan.max_iter, run.losses)


async def follow(me: Party, side: FeatureSide) -> Array:
    """A feature party's end: its coefficients (d, outputs)."""
    x, owner = side.columns, side.label_party
    descent = Descent(x, side.start, side.penalised, side.plan)
    told = Batches((x.training if side.mesh is not None else 0, 1))
    done, state = me.resumed()
    if state is not None:
        descent.restore(state)
        told.restore(state)
    async with me.within("fit") as fit:
        for epoch in range(done, side.plan.max_iter if descent.more else done):
            async with fit.within(epoch) as at:
                order = positions(await at.recv(owner, Order), x.training, owner)
                parts = [*batches(order, side.plan.batch_size)]
                await at.compute(x.check, parts, at.guard, cost=20.0 * x.values.size)
                for rows in parts:
                    cost = 2.0 * len(rows) * side.start.size
                    z = await at.compute(descent.scores, rows, cost=cost)
                    if side.mesh is None:
                        await at.send(owner, PartialScores(scores=await at.compute(side.masks, z, cost=cost)))
                        summed = await Sums(side.key, side.columns.factors(rows), side.outputs).ask(at, owner)
                    else:
                        share = told.tell(side.loss.curvature * z, rows)
                        summed = await side.mesh.gradient(at, side.columns.factors(rows), share)
                    await at.compute(descent.step, summed, len(rows), cost=4.0 * summed.size)
                if side.plan.early_stopping:
                    z = descent.scores(slice(x.training, None))
                    await at.send(owner, PartialScores(scores=await at.compute(side.masks, z, cost=0.0)))
                descent.end(await at.recv(owner, Move))
            me.checkpoint(epoch + 1, lambda: Arrays(descent.state() | told.arrays()))
            if not descent.more:
                break
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
    residuals = run.told.tell(side.residuals(z, rows), rows)
    await Sealer(side.key, residuals, side.counted(rows)).serve(at, side.peers)
    return np.asarray(side.columns.values[rows].T @ residuals.values)


class _Leading:
    """The label party's own columns, and what it knows of how training goes."""

    def __init__(self, side: LabelSide) -> None:
        self.side, self.told = side, Batches((side.answers.training, side.shape[1]))
        self.descent = Descent(side.columns, side.start, side.penalised, side.plan)
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

    def state(self) -> Arrays:
        """All that goes on from here."""
        held = {"losses": np.array(self.losses), "patience": self.patience.array()}
        return Arrays(self.descent.state() | self.told.arrays() | held)

    def restore(self, state: Arrays) -> None:
        """Take up what `state` gave. DataError if it is of other columns."""
        self.descent.restore(state)
        self.told.restore(state)
        self.losses = state["losses"].tolist()
        best, since = state["patience"].tolist()
        self.patience = Patience(self.side.plan.n_iter_no_change, best, int(since))
