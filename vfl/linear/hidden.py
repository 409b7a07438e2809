"""A linear model in which nobody sees a score: every party's share of the residuals leaves only encrypted.

Takes part: the label party, which may have columns too, and one or more feature parties; no other party. The
residual has to be affine in the score: least squares is so, logistic loss is replaced by its Taylor form at
0, log 2 - (y - 1/2) z + z^2 / 8 (Hardy et al. 2017). So each party k has a share of it: c X_k w_k, and the
label party minus the label besides. For every batch, each party has a key, and for every pair of parties:

    k -> p     SealedResiduals   [[share_k]] under k's key
    p -> k     MaskedGradient    [[X_p^T share_k + mask]]
    k -> p     OpenedGradient    X_p^T share_k + mask

and p adds up what came and X_p^T of its own share. With `solver="lbfgs"` shares are those at the end of a
whole step. The loss is quadratic, so from the gradients at both ends the label party knows how far to go,
and everybody the gradient there: one encrypted gradient an iteration, and inner products of each party's
own.

Who learns what:
- A party learns the gradient of its own columns over every batch, of three and more parties divided into
  what is due to each other party's columns. Batches of fewer than 10 rows for each of its columns are refused
  by each party itself, and columns with few rows behind their gradient (`vfl.linear.groups`).
- A party learns how many columns each other has, and a power of two above the root mean square of each
  other's share, or of how it changed.
- The label party learns lengths and angles of each party's gradients and steps (`TrialProducts`), and so the
  loss; feature parties learn how steps combine and how far each goes (`Move`).
- Nobody sees a score, a residual or a label of another in training. **Predicting shows the label party
  scores**, as in `vfl.linear.roles`.

Semi-honest parties, of which two that collude learn what either learns. One that cheats reads 34 bits of any
other's share for each number that it returns, and nothing from what it decrypts: `vfl.linear.gradient`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.errors import ProtocolError
from protocols.party import Coordinator, Party
from vfl.linear.line_search import direction, products
from vfl.linear.messages import Move, TrialProducts
from vfl.linear.state import FeatureSide, LabelSide, Solved
from vfl.linear.whole import Told

REMEMBERED = 40  # steps: a quadratic loss goes by all of them, and they are of an owner's columns alone


def shares(side: LabelSide | FeatureSide) -> Callable[[Array, Array | slice], Array]:
    """From this party's scores (b, 1) of some rows to its share of their residuals."""
    if isinstance(side, FeatureSide):
        return lambda z, rows: side.loss.curvature * z
    return lambda z, rows: side.loss.residual(z, side.answers.y[rows])


Settle = Callable[[Party, Array], Awaitable[Move]]


async def lead(me: Coordinator, side: LabelSide) -> Solved:
    """The label party's end."""
    run = _Descent(side)
    if not side.start.any():  # of other coefficients nobody here knows the loss
        run.losses = [side.mean_loss(np.zeros(side.shape), run.rows)]

    async def settle(at: Party, own: Array) -> Move:
        gram = own
        for peer in side.peers:
            said = await at.recv(peer, TrialProducts)
            if said.gram.shape != own.shape:
                raise ProtocolError(
                    f"{said.kind} from {peer}: expected {len(own)} vectors, got {len(said.gram)}; is it the "
                    "same run?"
                )
            gram = gram + said.gram
        found = run.chosen(gram)
        for peer in side.peers:
            await at.send(peer, found)
        return found

    done = await _descend(me, side, run, settle)
    return Solved(run.block.coef, done, run.converged, run.losses)


async def follow(me: Party, side: FeatureSide) -> Array:
    """A feature party's end: its coefficients (d, 1)."""
    run = _Descent(side)

    async def settle(at: Party, own: Array) -> Move:
        await at.send(side.label_party, TrialProducts(gram=own))
        return await at.recv(side.label_party, Move)

    await _descend(me, side, run, settle)
    return run.block.coef


async def _descend(me: Party, side: LabelSide | FeatureSide, run: _Descent, settle: Settle) -> int:
    """The same at all parties; how many steps were taken."""
    mesh, x = side.mesh, side.columns
    assert mesh is not None
    cost, share = 2.0 * x.values.size, shares(side)
    factors = await me.compute(x.factors, run.rows, cost=cost)

    async def gradient(at: Party, point: Array) -> Array:
        z = await at.compute(run.block.scores, point, cost=cost)
        change = await mesh.gradient(at, factors, run.told.rest(share(z[run.rows], run.rows)))
        return run.gradient(change, point)

    steps = me.steps(side.plan.max_iter, run, progress="iterations")
    if not steps.resumed:
        async with me.within("start") as at:
            for _ in range(1 + side.plan.rehearsals):
                run.block.span.turn(await gradient(at, run.block.span.point))
    for step in steps:
        if not run.more:
            break
        async with step as at:
            own = run.products(await gradient(at, run.trial))
            run.step(await settle(at, own))
    return steps.done


class _Descent:
    """One owner's part of L-BFGS whose searches are exact. In the span: the point and the gradient there."""

    def __init__(self, side: LabelSide | FeatureSide) -> None:
        self.block, self._tol = side.block(REMEMBERED), side.plan.tol
        self.rows = slice(0, side.columns.training)
        self.told = Told((side.columns.training, 1))
        self.more, self.converged = True, False
        self.losses: list[float] = []  # at the label party
        self._summed = np.zeros_like(self.block.span.point)  # X^T of all that was told of shares
        self._along = np.array([-1.0])  # the direction, in the span's basis
        self._there = self.block.span.gradient

    @property
    def trial(self) -> Array:
        """The end of a whole step."""
        return self.block.span.point + self.block.span.combined(self._along)

    def gradient(self, change: Array, point: Array) -> Array:
        """At `point`; `change`: X^T of what all were told now."""
        self._summed = self._summed + change
        return self.block.gradient(self._summed, self.block.x.training, point)

    def products(self, there: Array) -> Array:
        """Inner products of the basis, and last of the gradient at the end of a whole step."""
        self._there = there
        return products([*self.block.span.basis, there])

    def chosen(self, gram: Array) -> Move:
        """At the label party: the step that all parties' inner products ask for, and the next direction."""
        first, *old, there = np.eye(len(gram))
        along, change = np.append(self._along, 0.0), there - first
        slope, curved = float(first @ gram @ along), float(along @ gram @ change)
        step = max(-slope / curved, 0.0) if curved > 0 else 0.0
        steps, changes = old[: len(old) // 2], old[len(old) // 2 :]
        steps, changes = [*steps, step * along][-REMEMBERED:], [*changes, step * change][-REMEMBERED:]
        after = np.stack([first + step * change, *steps, *changes])
        gram = after @ gram @ after.T
        self.converged = bool(np.sqrt(max(gram[0, 0], 0.0)) <= self._tol)
        if self.losses:
            self.losses.append(self.losses[-1] + step * slope + step**2 / 2 * curved)
        return Move(coefficients=direction(gram), step=step, more=not self.converged and step > 0)

    def step(self, told: Move) -> None:
        """Take the label party's step. ProtocolError if the next is of another basis."""
        span = self.block.span
        gradient = span.gradient + told.step * (self._there - span.gradient)
        span.move(self._along, told.step)
        span.turn(gradient)
        if len(told.coefficients) != len(span.basis):
            raise ProtocolError(
                f"{told.kind}: expected {len(span.basis)} coefficients, got {len(told.coefficients)}"
            )
        self._along, self.more = told.coefficients, told.more

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        held = {"summed": self._summed, "along": self._along, "losses": np.array(self.losses)}
        held |= {"flags": np.array([self.more, self.converged], np.int64)}
        copies = {name: np.array(a) for name, a in held.items()}
        return Arrays(self.block.span.arrays("block") | self.told.arrays() | copies)

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns."""
        self.block.span.restore("block", state)
        self.told.restore(state)
        self._summed, self._along, self.losses = state["summed"], state["along"], state["losses"].tolist()
        self.more, self.converged = (bool(flag) for flag in state["flags"].tolist())
