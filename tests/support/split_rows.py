"""Small tables, networks and the unsplit training that split learning must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from protocols.learning.training import Settings
from protocols.party import Desk, Party
from protocols.wire.ledger import Ledger
from split.agreement import ClientPart
from split.parameters import SplitNet

SEED = 3


def tables(sizes: Sequence[int], columns: int = 5, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Clients with so many rows each: columns x0, x1, ..., a label `y` of "no" or "yes", a number `z`."""
    rng = np.random.default_rng(seed)
    made = {}
    for i, size in enumerate(sizes):
        x = rng.normal(size=(size, columns))
        table = pd.DataFrame(x, columns=[f"x{j}" for j in range(columns)])
        table["y"] = np.where(x.sum(axis=1) + rng.normal(size=size) > 0, "yes", "no")
        table["z"] = 150.0 + 40.0 * x[:, 0] + rng.normal(size=size)
        made[f"client{i}"] = table
    return made


def images(sizes: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Clients with so many images of 8 x 8 as 64 columns, and a label `digit` of 0, 1 or 2."""
    rng = np.random.default_rng(1)
    return {
        f"client{i}": pd.DataFrame(rng.normal(size=(size, 64))).assign(digit=np.arange(size) % 3)
        for i, size in enumerate(sizes)
    }


def mlp5() -> nn.Sequential:
    """Five layers, 5 -> 2."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


def convnet() -> nn.Sequential:
    """Seven layers, 64 -> 3, with running statistics, and activations of ranks 2 and 4."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def order(client: str, epoch: int, rows: int, seed: int = SEED) -> torch.Tensor:
    """In which order a client takes its rows."""
    party = Party(Desk(client, Ledger(), seed))
    return torch.from_numpy(party.within("fit").within(epoch).rng("batches").permutation(rows))


def unsplit(
    model: nn.Sequential, rows: Mapping[str, tuple[torch.Tensor, torch.Tensor]], settings: Settings
) -> dict[str, torch.Tensor]:
    """`model` trained whole, on the batches that the clients take in turn; its state."""
    optimizer = settings.new_optimizer(model.parameters())
    model.train()
    for epoch in range(settings.epochs):
        for client, (x, y) in rows.items():
            for batch in order(client, epoch, len(x)).split(settings.batch_size):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                settings.loss(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return dict(model.state_dict())


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def held(part: ClientPart) -> dict[str, torch.Tensor]:
    """A client's layers' state."""
    return dict(part.model.state_dict())


def plan(cut: tuple[int, ...], settings: Settings | None = None) -> SplitNet:
    """What all are told, without standardising."""
    s = settings or Settings(epochs=1)
    return SplitNet(kind=s.kind, target="y", cut=cut, epochs=s.epochs, standardise=False, **s.parameters())
