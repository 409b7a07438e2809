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
from torch import nn

from protocols.arrays import Array
from protocols.learning.clients import SERVER, Rows, canonical_ids
from protocols.learning.cut import Segment, Trainer, exchange, forward
from protocols.party import Coordinator, Party
from split.agreement import ClientPart, ServerPart, join, joined, standardised, unite
from split.handover import HandOver, Outputs, RowCount, hand_over, take_over
from split.parameters import SplitNet

ROWS = 4096  # of a batch when predicting


async def client(
    me: Coordinator, plan: SplitNet, module: nn.Module | None, rows: Rows, *, clients: Sequence[str]
) -> ClientPart:
    """One row-client, with its training rows. module: a network of the caller's own, if any. clients: all, in
    turn order."""
    async with me.within("setup") as at:
        part, x, targets = await join(at, plan, module, rows, clients)
    trainer, mine = Trainer(plan.settings, joined(part.layers)), segments(part)
    place = clients.index(me.name)
    for step in me.steps(plan.epochs, trainer):
        async with step as at:
            if place > 0:
                take_over(await at.recv(clients[place - 1], HandOver), trainer)
            draws = at.rng("layers")
            for batch, labels in _batches(at, x, targets, plan.batch_size):
                await exchange(at, mine, trainer, draws, batch, labels)
            # Between epochs the first client holds the last one's layers; the others are given theirs again.
            await _pass_on(at, trainer, clients, place, final=step.is_last)
    return part


async def server(
    me: Coordinator, plan: SplitNet, module: nn.Module | None, *, clients: Sequence[str]
) -> ServerPart:
    """The server, with its trained tail or middle. module and clients: as of a client."""
    async with me.within("setup") as at:
        part, rows = await unite(at, plan, module, clients)
    trainer = Trainer(plan.settings, part.layers.module)
    for step in me.steps(plan.epochs, trainer, progress="epochs"):
        async with step as at:
            for name in clients:
                mine, draws = [segment(part, name)], at.rng(f"layers for {name}")
                for _ in range(-(-rows[name] // plan.batch_size)):
                    await exchange(at, mine, trainer, draws)
    return part


def segments(part: ClientPart) -> list[Segment]:
    """What a client holds: the bottom, and in the U shape the head above the server's layers."""
    bottom = Segment(part.bottom.module, above=SERVER, labels=part.head is None, random=part.bottom.random)
    if part.head is None:
        return [bottom]
    return [bottom, Segment(part.head.module, {SERVER: part.head.inputs}, random=part.head.random)]


def segment(part: ServerPart, client: str) -> Segment:
    """What the server holds, for the turn of `client`."""
    own, above = part.layers, client if part.u_shaped else None
    return Segment(own.module, {client: own.inputs}, above, labels=not part.u_shaped, random=own.random)


async def _pass_on(at: Party, trainer: Trainer, clients: Sequence[str], place: int, *, final: bool) -> None:
    """Hand the layers on to the next client; after the last epoch the last client hands them to all."""
    last = len(clients) - 1
    if place == last and final:
        for peer in clients[:-1]:
            await at.send(peer, hand_over(trainer.layers, None))
    elif last:
        await at.send(clients[(place + 1) % len(clients)], hand_over(trainer.layers, trainer.optimizer))
    if place != last and (place == 0 or final):
        take_over(await at.recv(clients[last], HandOver), trainer)


def _batches(
    at: Party, rows: torch.Tensor, targets: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.from_numpy(at.rng("batches").permutation(len(rows)))
    epoch = (shuffled[order].split(size) for shuffled in (rows, targets))  # type: ignore[no-untyped-call]
    return zip(*epoch, strict=True)


async def ask(me: Coordinator, part: ClientPart, x: Array, ids: pd.Series | None = None) -> Array:
    """The client: the network's outputs for features x (n, d) float64, float32 (n, outputs).

    The server learns the smashed data of each row asked about, from which the row can be reconstructed. The
    client learns the model's outputs (vanilla), or the middle's activations (U-shaped), and could train a
    copy of the server's layers on enough of them. ids: of the rows (n,), where they have any, for the
    client's policy.
    """
    if ids is not None:
        await me.compute(me.guard.rows, canonical_ids(ids), cost=0.0)
    mine = segments(part)
    async with me.within("predict") as at:
        await at.send(SERVER, RowCount(rows=len(x)))
        results = []
        for rows in (await standardised(at, part.features, x)).split(ROWS):  # type: ignore[no-untyped-call]
            z = await forward(at, mine, rows)
            results.append((await at.recv(SERVER, Outputs)).z if z is None else z)
        return np.concatenate(results)


async def answer(me: Coordinator, part: ServerPart, *, clients: Sequence[str]) -> None:
    """The server: sends each batch of each client through its layers."""
    async with me.within("predict") as at:
        rows = {name: (await at.recv(name, RowCount)).rows for name in clients}
        done = 0
        for name in clients:
            mine = [segment(part, name)]
            for start in range(0, rows[name], ROWS):
                count = min(ROWS, rows[name] - start)
                z = await forward(at, mine, rows=count)
                if z is not None:
                    await at.send(name, Outputs(z=z))
                done += count
                me.progress("rows", done, sum(rows.values()))
