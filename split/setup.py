"""What is united before training, in the scope "setup": classes, standardising, the target's scale.

Every client tells the server its table's shape, which labels it has, and each column's mean and variance;
the server answers with what holds for all. A regression target's mean and variance go to the first
client instead, which answers the others: the server learns no statistics of labels that it need not see.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from protocols.arrays import Array
from protocols.errors import DataError
from protocols.party import Coordinator, Party
from protocols.tables import (
    Classes,
    Moments,
    Scaler,
    Scaling,
    check_classes,
    encode_labels,
    labels,
    moments,
    numbers,
)
from split.layers import Layers, Plan
from split.messages import SERVER, TableShape

Label = bool | int | str


@dataclass(frozen=True)
class ClientPart:
    """What a client keeps: its layers, how it standardises, and what the outputs mean."""

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


def joined(held: Sequence[Layers]) -> nn.Sequential:
    """The layers of one party as one module, whose parameters are theirs; in the U shape no network."""
    return nn.Sequential(OrderedDict(item for layers in held for item in layers.module.named_children()))


async def join(
    at: Party, plan: Plan, x: Array, y: pd.Series, clients: Sequence[str]
) -> tuple[ClientPart, torch.Tensor, torch.Tensor]:
    """A client's side. Returns its part with initial layers, features (n, d) float32, and targets (n,): class
    positions int64, or standardised numbers float32."""
    await at.send(SERVER, TableShape(rows=x.shape[0], columns=x.shape[1]))
    classes: tuple[Label, ...] = ()
    target = None
    if plan.settings.kind == "classification":
        await at.send(SERVER, Classes(labels=labels(y)))
        classes = tuple((await at.recv(SERVER, Classes)).labels)
        targets = encode_labels(y, classes)
    else:
        raw = numbers(y)
        target = await _unite_target(at, raw, clients)
        targets = (await at.compute(target, raw, cost=2.0 * raw.size))[:, 0]
    features = None
    if plan.standardise:
        await at.send(SERVER, await at.compute(moments, x, cost=4.0 * x.size))
        told = await at.recv(SERVER, Scaling)
        features = Scaler(told.mean, told.scale)
    bottom, _, *head = plan.parts(x.shape[1], len(classes) or 1)
    part = ClientPart(bottom, head[0] if head else None, features, classes, target)
    return part, await standardised(at, features, x), torch.from_numpy(targets)


async def unite(at: Coordinator, plan: Plan, clients: Sequence[str]) -> tuple[Layers, Mapping[str, int]]:
    """The server's side. Returns its initial layers, and each client's row count."""
    shapes = await at.gather(TableShape, of=clients)
    columns = {shape.columns for shape in shapes.values()}
    if len(columns) > 1:
        raise DataError(f"the clients' tables have {sorted(columns)} columns; all should have the same")
    outputs = 1
    if plan.settings.kind == "classification":
        told = await at.gather(Classes, of=clients)
        every = [label for one in told.values() for label in one.labels]
        classes = labels(pd.Series(every, dtype=object, name="of all clients"))
        check_classes(classes)
        outputs = len(classes)
        await at.broadcast(Classes(labels=classes), to=clients)
    if plan.standardise:
        sums = list((await at.gather(Moments, of=clients)).values())
        scaler = await at.compute(Scaler.combine, sums, cost=8.0 * len(sums) * len(sums[0].mean))
        await at.broadcast(Scaling(mean=scaler.mean, scale=scaler.scale), to=clients)
    return plan.parts(columns.pop(), outputs)[1], {name: shape.rows for name, shape in shapes.items()}


async def standardised(at: Party, scaler: Scaler | None, x: Array) -> torch.Tensor:
    """Features (n, d) float64 as the layers take them, float32."""
    if scaler is None:
        return torch.from_numpy(x.astype(np.float32))
    return torch.from_numpy(await at.compute(scaler, x, cost=2.0 * x.size))


async def _unite_target(at: Party, y: Array, clients: Sequence[str]) -> Scaler:
    own = await at.compute(moments, y.astype(np.float64), cost=4.0 * y.size)
    first, *others = clients
    if at.name != first:
        await at.send(first, own)
        told = await at.recv(first, Scaling)
        return Scaler(told.mean, told.scale)
    sums = [own, *[await at.recv(peer, Moments) for peer in others]]
    scaler = await at.compute(Scaler.combine, sums, cost=8.0 * len(sums))
    for peer in others:
        await at.send(peer, Scaling(mean=scaler.mean, scale=scaler.scale))
    return scaler
