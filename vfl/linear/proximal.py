"""Accelerated proximal steps, for l1 with all rows at once: both ends.

Each party solves its own part of a step by itself: with C = c X^T X / n of its own columns, at the point y
that the last steps lead on to, it finds

    u = argmin <X^T r / n, u> + L/2 (u - y)^T C (u - y) + l2/2 |u|^2 + l1 |u|_1

by coordinate descent, so that columns of one party that go together cost no steps. In exact mode u is told by
its scores, and the label party doubles L until the loss is below this bound (Beck and Teboulle 2009); in
hidden mode L is the number of parties, for which that holds of itself, since (z_1 + ... + z_P)^2 is at most
P (z_1^2 + ... + z_P^2). What is carried on is forgotten when it points backwards (O'Donoghue and Candes
2015). Who says what and learns what besides is told in `exact` and `hidden`; and by `ProximalSums`.
"""

from __future__ import annotations

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.errors import DataError, ProtocolError
from protocols.party import Coordinator, Party
from protocols.sums.masked import total
from vfl.linear.gradient import Sealer, Sums
from vfl.linear.hidden import shares
from vfl.linear.line_search import Patience
from vfl.linear.messages import PartialScores, ProximalStep, ProximalSums
from vfl.linear.state import FeatureSide, LabelSide, Solved
from vfl.linear.whole import Told

_SWEEPS, _ENOUGH = 10_000, 0.01
_STEEPEST = 2.0**40  # L, beyond which no loss goes


class Owner:
    """One owner's coefficients (d, outputs), and where they lead on to."""

    def __init__(self, side: LabelSide | FeatureSide) -> None:
        x, start, plan, penalised = side.columns, side.start, side.plan, side.penalised
        used = x.values[: x.training]
        self.x, self._l2, self._l1 = x, plan.l2 * penalised[:, None], plan.l1 * penalised[:, None]
        self._curved = side.loss.curvature * (used.T @ used) / len(used)
        self.coef, self.ahead, self.best, self.tried = start, start, start, start
        self.summed = np.zeros_like(start)  # X^T of all that was told of residuals
        self.told = Told((x.training, start.shape[1]))  # of what this owner tells of its own
        # L, which only grows; see above.
        self.curvature = 1.0 if side.mesh is None else 1.0 + len(side.mesh.others)
        self.more = True

    @property
    def gradient(self) -> Array:
        """Of the loss, at the point ahead."""
        return np.asarray(self.summed / self.x.training)

    def attempt(self) -> ProximalSums:
        """Solve this party's part of a step."""
        curvature = self.curvature
        self.tried = minimiser(
            self.gradient - curvature * self._curved @ self.ahead,
            curvature * self._curved,
            self._l2,
            self._l1,
            self.ahead,
        )
        moved = self.tried - self.ahead
        pulled = self._curved @ moved
        cost = self._l2 / 2 * self.tried**2 + self._l1 * np.abs(self.tried)
        return ProximalSums(
            linear=float((self.gradient * moved).sum()),
            quadratic=max(float((moved * pulled).sum()), 0.0),
            penalty=float(cost.sum()),
            turned=float((-pulled * (self.tried - self.coef)).sum()),
        )

    def hear(self, told: ProximalStep) -> bool:
        """Whether the attempt is taken. ProtocolError for another curvature than can follow.

        So that the attempts at one step end: each shows scores of other coefficients.
        """
        expected = self.curvature if told.taken else 2 * self.curvature
        if told.curvature != expected or expected > _STEEPEST:
            raise ProtocolError(f"{told.kind}: expected a curvature of {expected:g}, got {told.curvature:g}")
        self.curvature = told.curvature
        return told.taken

    def step(self, told: ProximalStep) -> None:
        """Go on as the label party says."""
        self.ahead = self.tried + told.momentum * (self.tried - self.coef)
        self.coef, self.more = self.tried, told.more
        self.best = self.coef if told.best else self.best
        self.coef = self.best if told.restore else self.coef

    def scores(self, coef: Array) -> Array:
        """Of all rows (n, outputs)."""
        return np.asarray(self.x.values @ coef)

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        held = {"coef": self.coef, "ahead": self.ahead, "best": self.best, "summed": self.summed}
        copies = {name: np.array(a) for name, a in held.items()}
        return Arrays(copies | self.told.arrays() | {"flags": np.array([self.curvature, self.more])})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns."""
        if state["coef"].shape != self.coef.shape:
            raise DataError(f"the checkpoint is not of this model: expected {list(self.coef.shape)}")
        self.coef, self.ahead, self.best = state["coef"], state["ahead"], state["best"]
        self.summed = state["summed"]
        self.told.restore(state)
        curvature, more = state["flags"].tolist()
        self.curvature, self.more = curvature, bool(more)


def minimiser(linear: Array, curved: Array, l2: Array, l1: Array, start: Array) -> Array:
    """About argmin <linear, u> + u^T curved u / 2 + l2 / 2 |u|^2 + l1 |u|_1 over u (d, outputs).

    From `start`, until a sweep changes a hundredth of what the first one changed: steps that are solved
    further are no fewer.
    """
    u, slope, first = np.array(start), linear + curved @ start, 0.0
    own = np.diag(curved)
    for _ in range(_SWEEPS):
        largest = 0.0
        for j in range(len(u)):
            weight = own[j] + l2[j, 0]
            if weight <= 0:  # a column of zeros
                continue
            pull = own[j] * u[j] - slope[j]
            new = np.sign(pull) * np.maximum(np.abs(pull) - l1[j, 0], 0.0) / weight
            change = new - u[j]
            if change.any():
                slope += curved[:, j : j + 1] * change
                u[j] = new
                largest = max(largest, float(np.abs(change).max() * np.sqrt(weight)))
        first = max(first, largest)
        if largest <= max(_ENOUGH * first, 1e-13):
            break
    return u


async def lead(me: Coordinator, side: LabelSide) -> Solved:
    """The label party's end."""
    run = _Leading(side)
    steps = me.steps(side.plan.max_iter, run, progress="iterations")
    if side.mesh is None and not steps.resumed:
        async with me.within("start") as at:
            run.begin(await _told(at, side) + run.owner.scores(run.owner.coef))
    for step in steps:
        if not run.owner.more:
            break
        async with step as at:
            await run.differentiate(at)
            while not (told := await run.attempt(at, last=step.is_last)).taken:
                await at.broadcast(told, to=side.peers)
            await at.broadcast(told, to=side.peers)
            run.owner.step(told)
    return Solved(run.owner.coef, steps.done, run.converged, run.losses)


async def follow(me: Party, side: FeatureSide) -> Array:
    """A feature party's end: its coefficients (d, outputs)."""
    x, leader, owner = side.columns, side.label_party, Owner(side)
    rows, cost = slice(0, x.training), 2.0 * x.values.size * side.outputs
    factors = await me.compute(side.columns.factors, rows, cost=cost)

    async def tell(at: Party, coef: Array) -> None:
        z = await at.compute(owner.scores, coef, cost=cost)
        await at.send(leader, PartialScores(scores=await at.compute(side.masks, z, cost=cost)))

    steps = me.steps(side.plan.max_iter, owner)
    if side.mesh is None and not steps.resumed:
        async with me.within("start") as at:
            await tell(at, owner.coef)
    for step in steps:
        if not owner.more:
            break
        async with step as at:
            if side.mesh is None:
                change = await Sums(side.key, factors, side.outputs).ask(at, leader)
            else:
                z = await at.compute(owner.scores, owner.ahead, cost=cost)
                share = owner.told.rest(shares(side)(z[rows], rows))
                change = await side.mesh.gradient(at, factors, share)
            owner.summed, taken = owner.summed + change, False
            while not taken:
                await at.send(leader, await at.compute(owner.attempt, cost=100.0 * x.count**2))
                if side.mesh is None:
                    await tell(at, owner.tried)
                answer = await at.recv(leader, ProximalStep)
                taken = owner.hear(answer)
            owner.step(answer)
    return owner.coef


async def _told(at: Coordinator, side: LabelSide) -> Array:
    """The sum of the feature parties' scores for all rows."""
    came = await at.gather(PartialScores, of=side.peers)
    return total({peer: said.scores for peer, said in came.items()}, side.shape)


class _Leading:
    """The label party's own columns; in exact mode also all rows' scores, here and ahead."""

    def __init__(self, side: LabelSide) -> None:
        self.side, self.owner = side, Owner(side)
        self.patience = Patience(side.plan.n_iter_no_change)
        self.converged = False
        self.losses: list[float] = []
        self._momentum = 1.0
        self._here = self._ahead = np.zeros(side.shape)
        self._rows = slice(0, side.answers.training)
        self._factors = side.columns.factors(self._rows) if side.mesh is not None else None
        self._cost = 2.0 * side.columns.values.size * side.shape[1]

    def begin(self, z: Array) -> None:
        """With the scores of the coefficients that training starts with."""
        self._here = self._ahead = z

    async def differentiate(self, at: Coordinator) -> None:
        """Give everybody the gradient at the point ahead."""
        side, rows, x = self.side, self._rows, self.side.columns
        if side.mesh is not None:
            assert self._factors is not None
            z = await at.compute(self.owner.scores, self.owner.ahead, cost=self._cost)
            share = self.owner.told.rest(shares(side)(z[rows], rows))
            change = await side.mesh.gradient(at, self._factors, share)
        else:
            residuals = self.owner.told.rest(side.residuals(self._ahead[rows], rows))
            await Sealer(side.key, residuals, side.counted(rows)).serve(at, side.peers)
            change = await at.compute(np.matmul, x.values[rows].T, residuals.values, cost=self._cost)
        self.owner.summed = self.owner.summed + change

    async def attempt(self, at: Coordinator, last: bool) -> ProximalStep:
        """What everybody's part of a step is worth."""
        side, owner = self.side, self.owner
        own = await at.compute(owner.attempt, cost=100.0 * side.columns.count**2)
        said = [own, *(await at.gather(ProximalSums, of=side.peers)).values()]
        linear, quadratic = sum(sums.linear for sums in said), sum(sums.quadratic for sums in said)
        tried = None
        if side.mesh is None:
            tried = await _told(at, side) + owner.scores(owner.tried)
            before, after = (side.mean_loss(z[self._rows], self._rows) for z in (self._ahead, tried))
            bound = before + linear + owner.curvature / 2 * quadratic
            if not after <= bound + 1e-12 * abs(before) and owner.curvature < _STEEPEST:
                owner.curvature *= 2
                return ProximalStep(taken=False, curvature=owner.curvature, momentum=0.0, more=True)
            self.losses.append(after + sum(sums.penalty for sums in said))
        self.converged = bool(owner.curvature * np.sqrt(quadratic) <= side.plan.tol * side.answers.unit)
        if sum(sums.turned for sums in said) > 0:
            self._momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * self._momentum**2)) / 2
        momentum = float((self._momentum - 1) / grown)
        self._momentum = float(grown)
        more, best, restore = not (self.converged or last), False, False
        if tried is not None:
            self._here, self._ahead = tried, tried + momentum * (tried - self._here)
            if side.plan.early_stopping:
                held_out = slice(side.answers.training, None)
                best = self.patience.better(side.mean_loss(tried[held_out], held_out))
                more = more and not self.patience.over
                self.converged = self.converged or self.patience.over
                restore = not more and not best
        return ProximalStep(
            taken=True, curvature=owner.curvature, momentum=momentum, more=more, best=best, restore=restore
        )

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        numbers = np.array([self._momentum, self.converged])
        held = {"numbers": numbers, "losses": np.array(self.losses), "patience": self.patience.array()}
        return Arrays({**self.owner.snapshot(), **held, "here": self._here, "there": self._ahead})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns."""
        self.owner.restore(state)
        self._momentum, converged = state["numbers"].tolist()
        self.converged, self.losses = bool(converged), state["losses"].tolist()
        self._here, self._ahead = state["here"], state["there"]
        best, since = state["patience"].tolist()
        self.patience = Patience(self.side.plan.n_iter_no_change, best, int(since))
