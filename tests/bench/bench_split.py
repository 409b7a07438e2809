"""What the lines cost a split training step: the real roles against the unsplit loop, meters on."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch

from protocols.federation import simulate
from protocols.learning.clients import Rows
from protocols.learning.networks import mlp
from protocols.learning.training import Settings
from split.parameters import SplitNet
from split.roles import client, server
from tests.bench import Row, bench, ratio

ROWS, COLUMNS, BATCH, REPEATS = 32 * 1000, 30, 32, 7


def _rows(settings: Settings, shape: str, clients: int) -> Row:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS))
    y = rng.integers(0, 2, ROWS)
    cut = (2,) if shape == "vanilla" else (1, 2)
    told = {
        "kind": "classification",
        "target": "y",
        "cut": cut,
        "standardise": False,
        "epochs": settings.epochs,
    }
    plan = SplitNet.model_validate({**told, **settings.parameters()})
    module = mlp(COLUMNS, 2, (64,))
    columns, names = tuple(range(COLUMNS)), [f"client{i}" for i in range(clients)]
    parts = np.array_split(np.arange(ROWS), clients)

    def unsplit() -> None:
        # Leaner than `training.train`: shuffled once, no loss read back, as in the roles.
        module = mlp(COLUMNS, 2, (64,))
        optimizer = settings.new_optimizer(module.parameters())
        order = torch.from_numpy(np.random.default_rng(0).permutation(ROWS))
        features, targets = torch.from_numpy(x.astype(np.float32))[order], torch.from_numpy(y)[order]
        for start in range(0, ROWS, BATCH):
            optimizer.zero_grad()
            outputs = module(features[start : start + BATCH])
            settings.loss(outputs, targets[start : start + BATCH]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def divided() -> None:
        roles = {
            name: partial(
                client, plan=plan, module=module, rows=Rows(columns, x[i], pd.Series(y[i])), clients=names
            )
            for name, i in zip(names, parts, strict=True)
        }
        simulate({**roles, "server": partial(server, plan=plan, module=module, clients=names)})

    note = f"MLP 30-64-2, batch {BATCH}, clients: {clients}, {ROWS // BATCH} steps; roles / unsplit loop"
    return Row(f"split step, {shape}, {settings.optimizer}", ratio(divided, unsplit, REPEATS), 3.0, 2.2, note)


@bench
def split_step() -> list[Row]:
    """Promised for vanilla; the U shape sends twice as many messages."""
    torch.set_num_threads(1)
    adam = Settings(epochs=1, batch_size=BATCH)
    sgd = Settings(epochs=1, batch_size=BATCH, optimizer="sgd", learning_rate=0.1)
    return [
        _rows(sgd, "vanilla", 1),
        _rows(adam, "vanilla", 1),
        _rows(adam, "vanilla", 5),
        _rows(adam, "U-shaped", 1),
    ]
