"""Predicting with a network that is cut: layers stay where they are, rows go through in large batches.

Clients and the server. The server learns the smashed data of each row asked about, from which the row can
be reconstructed. A client learns the model's outputs (vanilla), or the middle's activations (U-shaped),
and could train a copy of the server's layers on enough of them. Semi-honest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.learning.clients import SERVER, canonical_ids
from protocols.learning.cut import Smashed, from_wire
from protocols.learning.training import outputs, outputs_flops
from protocols.party import Party
from split.agreement import ClientPart, ServerPart, standardised
from split.handover import Outputs, RowCount

ROWS = 4096  # of a batch


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
