"""What row-clients agree on before the first round: how to standardise, and which labels there are.

K clients and a server. The server learns each client's row count, the mean and variance of each column (in
regression, of the target too), and which labels occur there. The clients learn the same over all rows
together. Semi-honest: parties follow the protocol. Sums are in the clear, so a client of few rows shows
much of them.
Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", 1979.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from protocols.arrays import Array
from protocols.errors import DataError, ProtocolError
from protocols.party import Coordinator, Party
from protocols.tables import (
    Classes,
    Kind,
    Moments,
    Scaler,
    Scaling,
    check_classes,
    encode_labels,
    features,
    labels,
    moments,
)

Label = bool | int | str


@dataclass(frozen=True)
class Rows:
    """One client's training rows, checked: features x (n, d) float64 and the target y (n,)."""

    x: Array
    y: pd.Series


@dataclass(frozen=True)
class Agreed:
    """What every party knows after set-up."""

    classes: tuple[Label, ...] = ()  # sorted; none in regression
    features: Scaler | None = None  # none where features are taken as they are
    target: Scaler | None = None  # of regression

    @property
    def outputs(self) -> int:
        """Outputs of a network: one per class, or 1."""
        return len(self.classes) or 1


async def agree(me: Party, server: str, rows: Rows, kind: Kind, standardise: bool) -> Agreed:
    """A client's half."""
    scaler: Scaler | None = None
    classes: list[Label] = []
    table = _scaled_columns(rows, kind, standardise)
    async with me.within("setup") as at:
        if table.shape[1]:
            await at.send(server, await at.compute(moments, table, cost=4.0 * table.size))
        if kind == "classification":
            found = await at.compute(labels, rows.y, cost=float(len(rows.y)))
            await at.send(server, Classes(labels=found))
        if table.shape[1]:
            scaling = await at.recv(server, Scaling)
            scaler = Scaler(scaling.mean, scaling.scale)
        if kind == "classification":
            classes = (await at.recv(server, Classes)).labels
    return _agreed(kind, standardise, classes, scaler)


async def unite(me: Coordinator, inputs: int, kind: Kind, standardise: bool) -> Agreed:
    """The server's half; `inputs` is the number of feature columns."""
    width = inputs * standardise + (kind == "regression")
    scaler: Scaler | None = None
    classes: list[Label] = []
    async with me.within("setup") as at:
        if width:
            came = await at.gather(Moments)
            check_widths(came, width)
            scaler = await at.compute(Scaler.combine, list(came.values()), cost=8.0 * width * len(came))
        if kind == "classification":
            classes = unite_labels({p: m.labels for p, m in (await at.gather(Classes)).items()})
            check_classes(classes)
        if scaler is not None:
            await at.broadcast(Scaling(mean=scaler.mean, scale=scaler.scale))
        if kind == "classification":
            await at.broadcast(Classes(labels=classes))
    return _agreed(kind, standardise, classes, scaler)


async def tensors(me: Party, rows: Rows, agreed: Agreed) -> tuple[torch.Tensor, torch.Tensor]:
    """x float32 (n, d), and y: int64 (n,) positions in the classes, or float32 (n, 1)."""

    def prepare() -> tuple[torch.Tensor, torch.Tensor]:
        x = agreed.features(rows.x) if agreed.features else rows.x.astype(np.float32)
        y = agreed.target(_numbers(rows.y)) if agreed.target else encode_labels(rows.y, agreed.classes)
        return torch.from_numpy(x), torch.from_numpy(y)

    return await me.compute(prepare, cost=2.0 * rows.x.size)


def check_widths(came: Mapping[str, Moments], width: int) -> None:
    """ProtocolError unless every client told moments of `width` columns."""
    for party, told in came.items():
        if told.mean.size != width:
            raise ProtocolError(
                f"{party} told moments of {told.mean.size} columns, expected {width}; "
                "are the columns the same at all clients?"
            )


def unite_labels(told: Mapping[str, list[Label]]) -> list[Label]:
    """All labels, sorted. DataError if two clients' labels differ in type."""
    first: tuple[str, type] | None = None
    for party, found in told.items():
        for label in found:
            first = first or (party, type(label))
            if type(label) is not first[1]:
                raise DataError(
                    f"labels are {first[1].__name__} at {first[0]} and {type(label).__name__} at {party}; "
                    "give the target one type at all clients"
                )
    return sorted({label for found in told.values() for label in found})


def _numbers(y: pd.Series) -> Array:
    return features(y.to_frame())


def _scaled_columns(rows: Rows, kind: Kind, standardise: bool) -> Array:
    x = rows.x if standardise else rows.x[:, :0]
    return np.column_stack([x, _numbers(rows.y)]) if kind == "regression" else x


def _agreed(kind: Kind, standardise: bool, classes: list[Label], scaler: Scaler | None) -> Agreed:
    if scaler is None:
        return Agreed(tuple(classes))
    if kind == "classification":
        return Agreed(tuple(classes), features=scaler)
    x = Scaler(scaler.mean[:-1], scaler.scale[:-1]) if standardise else None
    return Agreed(features=x, target=Scaler(scaler.mean[-1:], scaler.scale[-1:]))
