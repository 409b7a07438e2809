"""What row-clients agree on before the first round: which columns, how to standardise, and which labels.

K clients and a server, which compares and unites what they tell: see `protocols.learning.clients` and
`protocols.learning.agreement` for who learns what. In regression the target is one column more, so the server
learns its mean and variance too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from protocols.arrays import Array
from protocols.data.tables import Kind, Scaler, encode_labels, features
from protocols.learning.agreement import Agreement, Label, collect, scaled, tell
from protocols.learning.clients import Rows, same_columns, tell_columns
from protocols.party import Coordinator, Party


@dataclass(frozen=True)
class Agreed:
    """What every party knows after set-up."""

    inputs: int  # feature columns
    classes: tuple[Label, ...] = ()  # sorted; none in regression
    features: Scaler | None = None  # none where features are taken as they are
    target: Scaler | None = None  # of regression

    @property
    def outputs(self) -> int:
        """Outputs of a network: one per class, or 1."""
        return len(self.classes) or 1


async def agree(me: Coordinator, server: str, rows: Rows, kind: Kind, standardise: bool) -> Agreed:
    """A client tells the server about its columns and labels, and takes up what was agreed."""
    table = _scaled_columns(rows, kind, standardise)
    async with me.within("setup") as at:
        await tell_columns(at, server, rows)
        told = await tell(at, server, table, rows.y if kind == "classification" else None)
    return _agreed(rows.x.shape[1], kind, standardise, told)


async def unite(me: Coordinator, kind: Kind, standardise: bool) -> Agreed:
    """The server unites what its clients tell, and answers with what was agreed."""
    async with me.within("setup") as at:
        inputs = await same_columns(at, me.roster)
        width = inputs * standardise + (kind == "regression")
        told = await collect(at, me.roster, width, labelled=kind == "classification")
    return _agreed(inputs, kind, standardise, told)


async def tensors(me: Party, rows: Rows, agreed: Agreed) -> tuple[torch.Tensor, torch.Tensor]:
    """x float32 (n, d), and y: int64 (n,) positions in the classes, or float32 (n, 1)."""

    def prepare() -> tuple[torch.Tensor, torch.Tensor]:
        x = scaled(agreed.features, rows.x)
        y = agreed.target(_numbers(rows.y)) if agreed.target else encode_labels(rows.y, agreed.classes)
        return torch.from_numpy(x), torch.from_numpy(y)

    return await me.compute(prepare, cost=2.0 * rows.x.size)


def _numbers(y: pd.Series) -> Array:
    return features(y.to_frame())


def _scaled_columns(rows: Rows, kind: Kind, standardise: bool) -> Array:
    x = rows.x if standardise else rows.x[:, :0]
    return np.column_stack([x, _numbers(rows.y)]) if kind == "regression" else x


def _agreed(inputs: int, kind: Kind, standardise: bool, told: Agreement) -> Agreed:
    scaler, classes = told
    if kind == "classification" or scaler is None:
        return Agreed(inputs, classes, features=scaler)
    x = Scaler(scaler.mean[:-1], scaler.scale[:-1]) if standardise else None
    return Agreed(inputs, features=x, target=Scaler(scaler.mean[-1:], scaler.scale[-1:]))
