"""A linear model in which nobody sees a score: every party's share of the residuals leaves only encrypted.

Takes part: the label party, which may have columns too, and one or more feature parties; no other party. The
residual has to be affine in the score: least squares is so, logistic loss is replaced by its Taylor form at
0, log 2 - (y - 1/2) z + z^2 / 8 (Hardy et al. 2017). So each party k has a share of it: c X_k w_k, and the
label party minus the label besides. For every batch, each party has a key, and for every pair of parties:

    k -> p     SealedResiduals   [[share_k]] under k's key
    p -> k     MaskedGradient    [[X_p^T share_k + mask]]
    k -> p     OpenedGradient    X_p^T share_k + mask

and p adds up what came and X_p^T of its own share. `solver="lbfgs"` is conjugate gradients here, which is
what L-BFGS with exact line searches is where the loss is quadratic: each iteration takes one product of the
second derivative with a direction, of whose scores the shares are then, and a few scalars.

Who learns what:
- A party learns the gradient of its own columns over every batch (`solver="lbfgs"`: the second derivative
  times each direction, which is as much), of three and more parties divided into what is due to each other
  party's columns. Batches of fewer than 10 rows for each of its columns are refused by each party itself.
- A party learns how many columns each other has, and a power of two above each other's largest share so far.
- The label party learns lengths and angles of each party's gradient and direction (`ConjugateSums`), and so
  the loss; feature parties learn how far each step goes (`ConjugateStep`).
- Nobody sees a score, a residual or a label of another in training. **Predicting shows the label party
  scores**, as in `vfl.linear.exact`.

Semi-honest parties, of which two that collude learn what either learns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.party import Coordinator, Party
from vfl.linear.block import Block
from vfl.linear.sealed import Scale
from vfl.linear.sides import FeatureSide, LabelSide, Solved
from vfl.linear.words import ConjugateStep, ConjugateSums


def shares(side: LabelSide | FeatureSide) -> Callable[[Array, Array | slice], Array]:
    """From this party's scores (b, 1) of some rows to its share of their residuals."""
    if isinstance(side, FeatureSide):
        return lambda z, rows: side.loss.curvature * z
    return lambda z, rows: side.loss.residual(z, side.answers.y[rows])


Settle = Callable[[Party, ConjugateSums, bool], Awaitable[ConjugateStep]]


async def lead(me: Coordinator, side: LabelSide) -> Solved:
    """The label party's end of conjugate gradients."""
    run = _Conjugate(side.block(side.loss.curvature))
    if not side.start.any():  # of other coefficients nobody here knows the loss
        run.losses = [side.mean_loss(np.zeros(side.shape), run.training)]

    async def settle(at: Party, own: ConjugateSums, last: bool) -> ConjugateStep:
        said = [own, *[await at.recv(peer, ConjugateSums) for peer in side.peers]]
        found = run.chosen(said, side.plan.tol, last)
        for peer in side.peers:
            await at.send(peer, found)
        return found

    done = await _descend(me, side, run, settle)
    return Solved(run.block.coef, done, run.converged, run.losses)


async def follow(me: Party, side: FeatureSide) -> Array:
    """A feature party's end: its coefficients (d, 1)."""
    run = _Conjugate(side.block(side.loss.curvature))

    async def settle(at: Party, own: ConjugateSums, last: bool) -> ConjugateStep:
        await at.send(side.label_party, own)
        return await at.recv(side.label_party, ConjugateStep)

    await _descend(me, side, run, settle)
    return run.block.coef


async def _descend(me: Party, side: LabelSide | FeatureSide, run: _Conjugate, settle: Settle) -> int:
    """The same at all parties; how many steps were taken."""
    mesh, x, block = side.mesh, side.columns, run.block
    assert mesh is not None
    c, rows, cost = side.loss.curvature, run.training, 2.0 * x.values.size
    done, state = me.resumed()
    if state is not None:
        run.restore(state)
    else:
        async with me.within("start") as at:
            z = await at.compute(block.scores, block.span.point, cost=cost)
            share = shares(side)(z[rows], rows)
            block.turn(await mesh.gradient(at, x, rows, share, run.scale), x.training)
            run.direction = -block.span.gradient
    async with me.within("fit") as fit:
        for i in range(done, side.plan.max_iter if run.more else done):
            async with fit.within(i) as at:
                z = await at.compute(block.scores, run.direction, cost=cost)
                summed = await mesh.gradient(at, x, rows, c * z[rows], run.scale)
                own = run.sums(block.curved(summed, x.training, run.direction))
                run.step(await settle(at, own, i + 1 == side.plan.max_iter))
            me.checkpoint(i + 1, run.state)
            me.progress("iterations", i + 1, side.plan.max_iter)
            done = i + 1
            if not run.more:
                break
    return done


class _Conjugate:
    """One owner's part of conjugate gradients. In the span: the point and the gradient there."""

    def __init__(self, block: Block) -> None:
        self.block, self.scale, self.training = block, Scale(), slice(0, block.x.training)
        self.direction = np.zeros_like(block.span.point)
        self.more, self.converged = True, False
        self.losses: list[float] = []  # at the label party
        self._curved = self.direction

    def sums(self, curved: Array) -> ConjugateSums:
        """With the second derivative times the direction."""
        self._curved, gradient = curved, self.block.span.gradient
        return ConjugateSums(
            curved=float((self.direction * curved).sum()),
            gradient=float((gradient**2).sum()),
            across=float((gradient * curved).sum()),
            change=float((curved**2).sum()),
        )

    def chosen(self, said: list[ConjugateSums], tol: float, last: bool) -> ConjugateStep:
        """At the label party: the step that all parties' sums ask for."""
        curved, gradient = sum(own.curved for own in said), sum(own.gradient for own in said)
        across, change = sum(own.across for own in said), sum(own.change for own in said)
        step = gradient / curved if curved > 0 else 0.0
        left = max(gradient + 2 * step * across + step**2 * change, 0.0)
        self.converged = bool(np.sqrt(left) <= tol)
        if self.losses:
            self.losses.append(self.losses[-1] - step * gradient + step**2 / 2 * curved)
        keep = left / gradient if gradient > 0 else 0.0
        return ConjugateStep(step=step, keep=keep, more=not (self.converged or last or step == 0.0))

    def step(self, told: ConjugateStep) -> None:
        """Take the label party's step."""
        span = self.block.span
        span.point = span.point + told.step * self.direction
        span.gradient = span.gradient + told.step * self._curved
        self.direction = told.keep * self.direction - span.gradient
        self.more = told.more

    def state(self) -> Arrays:
        """All that goes on from here."""
        flags = np.array([self.scale.exponent, self.more, self.converged], np.int64)
        held = {"direction": np.array(self.direction), "flags": flags, "losses": np.array(self.losses)}
        return Arrays(self.block.span.arrays("block") | held)

    def restore(self, state: Arrays) -> None:
        """Take up what `state` gave. DataError if it is of other columns."""
        self.block.span.restore("block", state)
        self.direction, self.losses = state["direction"], state["losses"].tolist()
        exponent, more, converged = state["flags"].tolist()
        self.scale, self.more, self.converged = Scale(exponent), bool(more), bool(converged)
