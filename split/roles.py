"""Split learning: row-clients hold the first layers, one server the rest; clients train in turn.

Clients and one server, all semi-honest. **Vanilla**: the server holds the tail and computes the loss. It
learns smashed data *and* every label. **U-shaped**: the server holds only the middle; the head and the labels
stay with the clients. It learns smashed data and the gradients at both cuts, which still tell labels apart
to a server that looks. In both, rows can be reconstructed from smashed data (see `protocols.learning.cut`),
and each client learns the layers of the one before it. What is told before training: see `split.agreement`.
No defence is applied here. Gupta and Raskar 2018; Vepakomma et al. 2018.

Each epoch every client takes one turn over its rows, then hands its layers and optimizer state to the next;
in the end the last one gives its layers to all. So the run equals training the unsplit network on the same
batches in the same order, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from protocols.arrays import Array, Arrays, to_torch
from protocols.flops import backward_flops, forward_flops, training_flops
from protocols.learning.clients import SERVER, Rows, canonical_ids
from protocols.learning.cut import CutGradient, LabelledSmashed, Smashed, from_wire, to_wire
from protocols.learning.training import Settings, outputs, outputs_flops, restore, snapshot
from protocols.party import Coordinator, Party
from split.agreement import ClientPart, ServerPart, join, joined, standardised, unite
from split.chain import Layers, Plan
from split.handover import HandOver, Outputs, RowCount, hand_over, take_over

ROWS = 4096  # of a batch


async def client(me: Coordinator, plan: Plan, rows: Rows, *, clients: Sequence[str]) -> ClientPart:
    """One row-client, with its training rows. `clients`: all, in turn order."""
    async with me.within("setup") as at:
        part, x, targets = await join(at, plan, rows, clients)
    trainer = Trainer(plan.settings, part.layers)
    turn = u_client_turn if plan.u_shaped else client_turn
    epochs, place = plan.settings.epochs, clients.index(me.name)
    async with me.within("fit") as fit:
        for epoch in range(trainer.resume(me), epochs):
            async with fit.within(epoch) as at:
                if place > 0:
                    trainer.take_over(await at.recv(clients[place - 1], HandOver))
                await turn(at, part, trainer, x, targets)
                await _pass_on(at, trainer, clients, place, final=epoch == epochs - 1)
            # Between epochs the first client holds the last one's layers; the others are given theirs again.
            me.checkpoint(epoch + 1, trainer.snapshot)
    return part


async def server(me: Coordinator, plan: Plan, *, clients: Sequence[str]) -> ServerPart:
    """The server, with its trained tail or middle. `clients`: all, in turn order."""
    async with me.within("setup") as at:
        part, rows = await unite(at, plan, clients)
    own = part.layers
    trainer = Trainer(plan.settings, (own,))
    turn = u_server_turn if plan.u_shaped else server_turn
    epochs = plan.settings.epochs
    async with me.within("fit") as fit:
        for epoch in range(trainer.resume(me), epochs):
            async with fit.within(epoch) as at:
                for name in clients:
                    await turn(at, name, own, trainer, -(-rows[name] // plan.settings.batch_size))
            me.checkpoint(epoch + 1, trainer.snapshot)
            me.progress("epochs", epoch + 1, epochs)
    return part


class Trainer:
    """One party's layers, and the optimizer that steps them once per batch."""

    def __init__(self, settings: Settings, held: Sequence[Layers]) -> None:
        self.layers = joined(held)
        self.settings = settings
        self._parameters = list(self.layers.parameters())
        # Layers such as a lone ReLU have nothing to step, and torch refuses an empty optimizer.
        self.optimizer = settings.new_optimizer(self._parameters) if self._parameters else None

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of outputs (b, outputs) against class positions int64 (b,) or numbers float32 (b,)."""
        classes = self.settings.kind == "classification"
        return self.settings.loss(outputs, targets if classes else targets.unsqueeze(1))

    def back(self, h: torch.Tensor, g: torch.Tensor) -> None:
        """Backward from an output `h` with its gradient `g`, then a step."""
        if h.requires_grad:
            h.backward(g)  # type: ignore[no-untyped-call]
        self.step()

    def step(self) -> None:
        """Step on the gradients, and clear them."""
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None

    def take_over(self, given: HandOver) -> None:
        """Go on from what another client hands over."""
        take_over(given, self.layers, self.optimizer)

    def snapshot(self) -> Arrays:
        """Layers and optimizer, to go on from."""
        return snapshot(self.layers, self.optimizer)

    def resume(self, me: Party) -> int:
        """Epochs that are done already; the state after them is taken up."""
        done, state = me.resumed()
        if state is not None:
            restore(state, self.layers, self.optimizer)
        return done


async def client_turn(
    at: Party, part: ClientPart, trainer: Trainer, rows: torch.Tensor, targets: torch.Tensor
) -> None:
    """One client's pass over its rows; vanilla."""
    bottom = part.bottom.module
    draws = at.rng("layers") if part.bottom.random else None
    for x, y in _batches(at, rows, targets, trainer.settings.batch_size):
        h = await at.compute(bottom, x, rng=draws)
        await at.send(SERVER, LabelledSmashed(h=to_wire(h), labels=y.numpy()))
        g = from_wire((await at.recv(SERVER, CutGradient)).g, h.shape[1:], len(x))
        await at.compute(trainer.back, h, g, cost=backward_flops(bottom, x))


async def server_turn(at: Party, peer: str, own: Layers, trainer: Trainer, steps: int) -> None:
    """The server's side of one client's pass; vanilla."""
    tail = own.module
    draws = at.rng(f"layers for {peer}") if own.random else None

    def step(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        trainer.loss(tail(h), y).backward()  # type: ignore[no-untyped-call]
        trainer.step()
        return h.grad

    for _ in range(steps):
        told = await at.recv(peer, LabelledSmashed)
        h = from_wire(told.h, own.inputs).requires_grad_()
        cost = training_flops(tail, h, input_gradient=True)
        g = await at.compute(step, h, to_torch(told.labels), cost=cost, rng=draws)
        await at.send(peer, CutGradient(g=_gradient(g, h)))


async def u_client_turn(
    at: Party, part: ClientPart, trainer: Trainer, rows: torch.Tensor, targets: torch.Tensor
) -> None:
    """One client's pass over its rows; U-shaped."""
    assert part.head is not None
    bottom, head = part.bottom.module, part.head.module
    draws = at.rng("layers")
    bottom_draws, head_draws = (draws if layers.random else None for layers in part.layers)

    def loss_gradient(m: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        trainer.loss(head(m), y).backward()  # type: ignore[no-untyped-call]
        return m.grad

    for x, y in _batches(at, rows, targets, trainer.settings.batch_size):
        h = await at.compute(bottom, x, rng=bottom_draws)
        await at.send(SERVER, Smashed(h=to_wire(h)))
        m = from_wire((await at.recv(SERVER, Smashed)).h, part.head.inputs, len(x)).requires_grad_()
        cost = training_flops(head, m, input_gradient=True)
        g = await at.compute(loss_gradient, m, y, cost=cost, rng=head_draws)
        await at.send(SERVER, CutGradient(g=_gradient(g, m)))
        g = from_wire((await at.recv(SERVER, CutGradient)).g, h.shape[1:], len(x))
        await at.compute(trainer.back, h, g, cost=backward_flops(bottom, x))


async def u_server_turn(at: Party, peer: str, own: Layers, trainer: Trainer, steps: int) -> None:
    """The server's side of one client's pass; U-shaped."""
    middle = own.module
    draws = at.rng(f"layers for {peer}") if own.random else None
    for _ in range(steps):
        h = from_wire((await at.recv(peer, Smashed)).h, own.inputs).requires_grad_()
        m = await at.compute(middle, h, cost=forward_flops(middle, h), rng=draws)
        await at.send(peer, Smashed(h=to_wire(m)))
        g = from_wire((await at.recv(peer, CutGradient)).g, m.shape[1:], len(m))
        cost = backward_flops(middle, h, input_gradient=True)
        await at.compute(trainer.back, m, g, cost=cost)
        await at.send(peer, CutGradient(g=_gradient(h.grad, h)))


async def _pass_on(at: Party, trainer: Trainer, clients: Sequence[str], place: int, *, final: bool) -> None:
    """After a turn: to the next client, or from the last one to all. Everybody ends with the same layers."""
    last = len(clients) - 1
    if place == last and final:
        for peer in clients[:-1]:
            await at.send(peer, hand_over(trainer.layers, None))
    elif last:
        await at.send(clients[(place + 1) % len(clients)], hand_over(trainer.layers, trainer.optimizer))
    if place != last and (place == 0 or final):
        trainer.take_over(await at.recv(clients[last], HandOver))


def _batches(
    at: Party, rows: torch.Tensor, targets: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.from_numpy(at.rng("batches").permutation(len(rows)))
    epoch = (shuffled[order].split(size) for shuffled in (rows, targets))  # type: ignore[no-untyped-call]
    return zip(*epoch, strict=True)


def _gradient(g: torch.Tensor | None, at: torch.Tensor) -> Array:
    # None where the layers do not depend on what came in.
    return to_wire(torch.zeros_like(at) if g is None else g)


async def ask(me: Party, part: ClientPart, x: Array, ids: pd.Series | None = None) -> Array:
    """The client: the network's outputs for features x (n, d) float64, float32 (n, outputs).

    ids: of the rows (n,), where they have any, for the client's policy.
    """
    if ids is not None:
        await me.compute(me.guard.rows, canonical_ids(ids), cost=0.0)
    async with me.within("predict") as at:
        await at.send(SERVER, RowCount(rows=len(x)))
        results = []
        for rows in (await standardised(at, part.features, x)).split(ROWS):  # type: ignore[no-untyped-call]
            bottom = part.bottom.module
            h = await at.compute(outputs, bottom, rows, cost=outputs_flops(bottom, tuple(rows.shape)))
            await at.send(SERVER, Smashed(h=h.reshape(len(h), -1)))
            if part.head is None:
                results.append((await at.recv(SERVER, Outputs)).z)
                continue
            head = part.head.module
            m = from_wire((await at.recv(SERVER, Smashed)).h, part.head.inputs, len(rows))
            cost = outputs_flops(head, tuple(m.shape))
            results.append(await at.compute(outputs, head, m, cost=cost))
        return np.concatenate(results)


async def answer(me: Party, part: ServerPart, *, clients: Sequence[str]) -> None:
    """The server: sends each batch of each client through its layers."""
    own = part.layers
    async with me.within("predict") as at:
        rows = {name: (await at.recv(name, RowCount)).rows for name in clients}
        done = 0
        for name in clients:
            for _ in range(0, rows[name], ROWS):
                h = from_wire((await at.recv(name, Smashed)).h, own.inputs)
                z = await at.compute(outputs, own.module, h, cost=outputs_flops(own.module, tuple(h.shape)))
                await at.send(name, Smashed(h=z.reshape(len(z), -1)) if part.u_shaped else Outputs(z=z))
                done += len(h)
                me.progress("rows", done, sum(rows.values()))


# FOLDED split/roles.py
# Predicting with a network that is cut: layers stay where they are, rows go through in large batches.
#
# Clients and the server. The server learns the smashed data of each row asked about, from which the row can
# be reconstructed. A client learns the model's outputs (vanilla), or the middle's activations (U-shaped),
# and could train a copy of the server's layers on enough of them. Semi-honest.
#
