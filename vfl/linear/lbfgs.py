"""L-BFGS over all rows, in exact mode: both ends. Who says what and learns what is told in `exact`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.errors import ProtocolError
from protocols.party import Coordinator, Party
from protocols.sums.masked import total
from vfl.linear.columns import Block
from vfl.linear.gradient import Sealer, Sums
from vfl.linear.line_search import Patience, Span, direction, line_search, products
from vfl.linear.messages import InnerProducts, Move, PartialScores
from vfl.linear.state import FeatureSide, LabelSide, Solved
from vfl.linear.whole import Factors, Rounded, Told


async def lead(me: Coordinator, side: LabelSide) -> Solved:
    """The label party's end."""
    run = _Leading(side)
    steps = me.steps(side.plan.max_iter, run, progress="iterations")
    if not steps.resumed:
        async with me.within("start") as at:
            run.begin(await _scores(at, side))
            for _ in range(side.plan.rehearsals):
                await run.serve(at)
    for step in steps:
        if not run.more:
            break
        async with step as at:
            await run.serve(at)
            await at.compute(run.own_gradient, cost=run.cost)
            inner = await at.gather(InnerProducts, of=side.peers)
            scores = await _scores(at, side, run.told.highest)
            move = await at.compute(run.choose, inner, scores, step.is_last, cost=20 * run.cost)
            await at.broadcast(move, to=side.peers)
    return Solved(run.block.coef, steps.done, run.converged, run.losses)


async def follow(me: Party, side: FeatureSide) -> Array:
    """A feature party's end: its coefficients (d, outputs)."""
    block = await me.compute(side.block, cost=float(side.columns.values.size))
    run, x = _Following(block), side.columns
    steps = me.steps(side.plan.max_iter, run)
    cost = 2.0 * x.values.size * side.outputs
    factors = await me.compute(x.factors, slice(0, x.training), cost=cost)
    if not steps.resumed:
        async with me.within("start") as at:
            await _tell(at, side, block.span.point, block, cost)
            for _ in range(side.plan.rehearsals):
                await run.ask(at, side, factors)
    for step in steps:
        if not run.more:
            break
        async with step as at:
            await run.ask(at, side, factors)
            await at.compute(block.turn, run.summed, x.training, cost=2.0 * run.summed.size)
            inner = InnerProducts(gram=products(block.span.basis), penalty=block.penalty())
            await at.send(side.label_party, inner)
            # Scores of a gradient are about as large as residuals, which those of counts may be.
            await _tell(at, side, block.span.gradient, block, cost, run.highest)
            run.move(await at.recv(side.label_party, Move))
    return block.coef


async def _scores(at: Coordinator, side: LabelSide, exponent: int = 0) -> Array:
    """The sum of the feature parties' scores for all rows."""
    came = await at.gather(PartialScores, of=side.peers)
    return total({peer: said.scores for peer, said in came.items()}, side.shape, exponent)


async def _tell(
    at: Party, side: FeatureSide, vector: Array, block: Block, cost: float, exponent: int = 0
) -> None:
    scores = await at.compute(block.scores, vector, cost=cost)
    masked = await at.compute(side.masks, scores, exponent, cost=cost)
    await at.send(side.label_party, PartialScores(scores=masked))


class _Leading:
    """The label party's own columns, and a span of all rows' scores."""

    def __init__(self, side: LabelSide) -> None:
        self.side = side
        self.told = Told((side.answers.training, side.shape[1]))
        self.block = side.block()
        self.scores = Span(np.zeros(side.shape))
        self.patience = Patience(side.plan.n_iter_no_change)
        self.more, self.converged = True, False
        self.losses: list[float] = []
        self._best = self.block.span.point
        self.training = slice(0, side.answers.training)
        self.cost = 2.0 * self.block.x.values.size * side.shape[1] + 10.0 * side.answers.y.size

    def begin(self, others: Array) -> None:
        """With the scores that the feature parties' coefficients start with."""
        self.scores.point = others + self.block.scores(self.block.span.point)

    async def serve(self, at: Coordinator) -> None:
        """Let the others have their gradients at the point."""
        residuals = await at.compute(self._residuals, cost=self.cost)
        await Sealer(self.side.key, residuals, self.side.counted(self.training)).serve(at, self.side.peers)

    def _residuals(self) -> Rounded:
        """At the point: what the others do not know of them."""
        return self.told.rest(self.side.residuals(self.scores.point[self.training], self.training))

    def own_gradient(self) -> None:
        """Of its own columns, from the same numbers as everybody's."""
        x = self.block.x.values[self.training]
        self.block.turn(x.T @ self.told.values, len(x))

    def choose(self, inner: Mapping[str, InnerProducts], others: Array, last: bool) -> Move:
        """The next step, from what the feature parties say of theirs. It is taken here too."""
        self.scores.turn(others + self.block.scores(self.block.span.gradient))
        gram, penalty = products(self.block.span.basis), self.block.penalty()
        for peer, said in inner.items():
            if said.gram.shape != gram.shape or said.penalty.shape != penalty.shape:
                raise ProtocolError(
                    f"{said.kind} from {peer}: expected {len(gram)} vectors, got {len(said.gram)}; is it the "
                    "same run?"
                )
            if said.gram.diagonal().min() < 0 or said.penalty.diagonal().min(initial=0.0) < 0:
                raise ProtocolError(
                    f"{said.kind} from {peer}: expected squares of lengths, got negative ones"
                )
            gram, penalty = gram + said.gram, penalty + said.penalty
        if not self.losses:
            self.losses.append(self._loss() + float(penalty[0, 0]) / 2)
        self.converged = bool(np.sqrt(gram[0, 0]) <= self.side.plan.tol * self.side.answers.unit)
        coefficients, step = np.zeros(len(gram)), 0.0
        if not self.converged:
            coefficients = direction(gram)
            step = self._advance(coefficients, penalty, float(gram[0] @ coefficients))
            self.converged = step == 0.0  # nothing falls any more, as far as floats can tell
        self.more = not self.converged and not last
        best, restore = self._judge() if self.side.plan.early_stopping else (False, False)
        return Move(coefficients=coefficients, step=step, more=self.more, best=best, restore=restore)

    def _advance(self, coefficients: Array, penalty: Array, first: float) -> float:
        """Go along a direction as far as the objective falls; how far.

        penalty: l2 times inner products. first: the slope at the start, of the gradients themselves.
        """
        a, rows = self.side.answers, self.training
        point, along = self.scores.point[rows], self.scores.combined(coefficients)[rows]
        linear = float(penalty[0, 1:] @ coefficients)
        square = float(coefficients @ penalty[1:, 1:] @ coefficients)

        def slope(t: float) -> float:
            with np.errstate(over="ignore", invalid="ignore"):
                residual = a.loss.residual(point + t * along, a.y[rows])
                of_loss = (a.weights[rows, None] * residual * along).sum() / len(along)
            return float(of_loss) + linear + t * square

        if -first <= np.finfo(np.float64).eps * abs(self.losses[-1]):
            return 0.0  # a loss so much lower is the same float
        # Scores are multiples of 2^-44, so near the optimum their slope is off by more than is left of it.
        off = slope(0.0) - first
        step = line_search(lambda t: slope(t) - off)
        if step:
            self.block.span.move(coefficients, step)
            self.scores.move(coefficients, step)
            cost = float(penalty[0, 0]) + 2 * step * linear + step**2 * square
            self.losses.append(self._loss() + cost / 2)
        return step

    def _loss(self) -> float:
        return self.side.mean_loss(self.scores.point[self.training], self.training)

    def _judge(self) -> tuple[bool, bool]:
        held_out = slice(self.side.answers.training, None)
        best = self.patience.better(self.side.mean_loss(self.scores.point[held_out], held_out))
        self._best = self.block.span.point if best else self._best
        self.more = self.more and not self.patience.over
        self.converged = self.converged or self.patience.over
        restore = not self.more and not best
        if restore:
            self.block.span.point = self._best
        return best, restore

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        held = self.block.span.arrays("block") | self.scores.arrays("scores")
        flags = np.array([self.more, self.converged], np.int64)
        held |= self.told.arrays() | {
            "flags": flags,
            "losses": np.array(self.losses),
            "best": np.array(self._best),
        }
        return Arrays(held | {"patience": self.patience.array()})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns or rows."""
        self.block.span.restore("block", state)
        self.scores.restore("scores", state)
        self.told.restore(state)
        self.more, self.converged = (bool(flag) for flag in state["flags"].tolist())
        self.losses, self._best = state["losses"].tolist(), state["best"]
        best, since = state["patience"].tolist()
        self.patience = Patience(self.side.plan.n_iter_no_change, best, int(since))


class _Following:
    """A feature party's columns, and what it goes back to if the validation loss was best there."""

    def __init__(self, block: Block) -> None:
        self.block, self.more = block, True
        self.summed = np.zeros_like(block.span.point)  # X^T of all that was told of residuals
        self.highest = 0  # exponent of those
        self._best = block.span.point

    async def ask(self, at: Party, side: FeatureSide, factors: Factors) -> None:
        """Take in X^T of what is told now."""
        sums = Sums(side.key, factors, side.outputs)
        self.summed = self.summed + await sums.ask(at, side.label_party)
        self.highest = max(self.highest, sums.exponent)

    def move(self, move: Move) -> None:
        """Take the label party's step. ProtocolError if it is of another basis."""
        span = self.block.span
        if len(move.coefficients) != len(span.basis):
            raise ProtocolError(
                f"{move.kind}: expected {len(span.basis)} coefficients, got {len(move.coefficients)}"
            )
        if move.step:
            span.move(move.coefficients, move.step)
        self._best = span.point if move.best else self._best
        if move.restore:
            span.point = self._best
        self.more = move.more

    def snapshot(self) -> Arrays:
        """All that goes on from here."""
        held = {"best": self._best, "summed": self.summed, "flags": np.array([self.more, self.highest])}
        return Arrays(self.block.span.arrays("block") | {name: np.array(a) for name, a in held.items()})

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave. DataError if it is of other columns."""
        self.block.span.restore("block", state)
        self._best, self.summed = state["best"], state["summed"]
        more, self.highest = state["flags"].tolist()
        self.more = bool(more)
