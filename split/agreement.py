"""What is united before training, in the scope "setup": classes, standardising, the target's scale.

Every client tells the server its number of rows and of columns, a digest of their names (see
`protocols.learning.clients`), which labels it has, and each column's mean and variance; the server answers
with what holds for all (see `protocols.learning.agreement`). A regression target's mean and variance go to
the first client instead, which answers the others: the server learns no statistics of labels that it need not
see.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Scaler, encode_labels, moments, numbers
from protocols.learning.agreement import Label, collect, scaled, tell
from protocols.learning.clients import SERVER, Rows, same_columns, tell_columns
from protocols.party import Coordinator, Party
from split.chain import Layers
from split.handover import RowCount
from split.parameters import SplitNet


@dataclass(frozen=True)
class ClientPart:
    """What a client keeps: its columns, its layers, how it standardises, and what the outputs mean."""

    columns: tuple[Any, ...]  # names, sorted
    bottom: Layers
    head: Layers | None  # of the U shape
    features: Scaler | None
    classes: tuple[Label, ...]  # none for regression
    target: Scaler | None  # of regression

    @property
    def layers(self) -> tuple[Layers, ...]:
        """The client's layers, in order."""
        return (self.bottom,) if self.head is None else (self.bottom, self.head)

    @property
    def model(self) -> nn.Sequential:
        """All layers that the client holds, under their names in the whole network."""
        return joined(self.layers)


@dataclass(frozen=True)
class ServerPart:
    """What the server keeps: its layers, and what it takes to build them again."""

    layers: Layers
    columns: int
    outputs: int
    u_shaped: bool


def joined(held: Sequence[Layers]) -> nn.Sequential:
    """The layers of one party as one module, whose parameters are theirs; in the U shape no network."""
    # Not named_children(), which leaves out a layer that comes a second time, as an activation may.
    return nn.Sequential(OrderedDict(item for layers in held for item in layers.module._modules.items()))


async def join(
    at: Coordinator, plan: SplitNet, module: nn.Module | None, rows: Rows, clients: Sequence[str]
) -> tuple[ClientPart, torch.Tensor, torch.Tensor]:
    """A client's side. Returns its part with initial layers, features (n, d) float32, and targets (n,): class
    positions int64, or standardised numbers float32."""
    x, y = rows.x, rows.y
    await tell_columns(at, SERVER, rows)
    await at.send(SERVER, RowCount(rows=len(x)))
    labelled = plan.kind == "classification"
    features, classes = await tell(at, SERVER, x if plan.standardise else x[:, :0], y if labelled else None)
    target: Scaler | None = None
    if labelled:
        targets = encode_labels(y, classes)
    else:
        raw = numbers(y)
        target = await _unite_target(at, raw, clients)
        targets = (await at.compute(target, raw, cost=2.0 * raw.size))[:, 0]
    bottom, _, *head = plan.layers(module, at.desk.seed, x.shape[1], len(classes) or 1)
    part = ClientPart(rows.columns, bottom, head[0] if head else None, features, classes, target)
    return part, await standardised(at, features, x), torch.from_numpy(targets)


async def unite(
    at: Coordinator, plan: SplitNet, module: nn.Module | None, clients: Sequence[str]
) -> tuple[ServerPart, Mapping[str, int]]:
    """The server's side. Returns its part with initial layers, and each client's row count."""
    columns = await same_columns(at, clients)
    counts = await at.gather(RowCount, of=clients)
    labelled = plan.kind == "classification"
    _, classes = await collect(at, clients, columns * plan.standardise, labelled=labelled)
    outputs = len(classes) or 1
    layers = plan.layers(module, at.desk.seed, columns, outputs)[1]
    part = ServerPart(layers, columns, outputs, plan.u_shaped)
    return part, {name: count.rows for name, count in counts.items()}


async def standardised(at: Party, scaler: Scaler | None, x: Array) -> torch.Tensor:
    """Features (n, d) float64 as the layers take them, float32."""
    cost = 0.0 if scaler is None else 2.0 * x.size
    return torch.from_numpy(await at.compute(scaled, scaler, x, cost=cost))


async def _unite_target(at: Coordinator, y: Array, clients: Sequence[str]) -> Scaler:
    y = y.astype(np.float64)
    first, *others = clients
    if at.name == first:
        own = await at.compute(moments, y, cost=4.0 * y.size)
        scaler, _ = await collect(at, others, 1, labelled=False, own=[own])
    else:
        scaler, _ = await tell(at, first, y, None)
    assert scaler is not None
    return scaler
