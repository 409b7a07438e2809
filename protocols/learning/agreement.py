"""What row-clients agree on before training: how columns are standardised, and which labels there are.

K clients, and a party that unites what they tell: a server, or one of the clients. It learns each client's
row count, the mean and variance of each column that it is told of, and which labels occur there. The others
learn the same over all rows together. Semi-honest: parties follow the protocol. Sums are in the clear, so a
client of few rows shows much of them.
Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from protocols.arrays import Array, Arrays
from protocols.data.tables import Classes, Moments, Scaler, Scaling, check_classes, labels, moments
from protocols.errors import DataError
from protocols.party import Coordinator
from protocols.sums.plain import Plain, Sum

IN_THE_CLEAR = Plain(Moments)
Label = bool | int | str
Agreement = tuple[Scaler | None, tuple[Label, ...]]  # no scaler for no columns; no labels for none told


async def tell(
    at: Coordinator, uniting: str, x: Array, y: pd.Series | None, *, way: Sum = IN_THE_CLEAR
) -> Agreement:
    """A client's half: tell `uniting` of the columns of x (n, d), and of the labels y (n,) if any.

    way: how moments are summed up. DataError for columns of fewer than 2 rows: the mean of one row is that
    row.
    """
    if x.shape[1] and len(x) < 2:
        raise DataError(
            f"{len(x)} training row, expected at least 2: its mean, told to {uniting}, would be "
            "the row itself; add rows, or leave this client out"
        )
    scaler: Scaler | None = None
    classes: list[Label] = []
    at.guard.group(len(x))
    if x.shape[1]:
        peers = [party for party in at.desk.parties if party != uniting]
        own = await at.compute(moments, x, cost=4.0 * x.size)
        if way.hides:
            await way.give(at, uniting, peers, Arrays({"mean": own.mean}), len(x))
            mean = (await at.recv(uniting, Scaling)).mean
            own = Moments(rows=len(x), mean=mean, variance=own.variance + (own.mean - mean) ** 2)
            await way.give(at, uniting, peers, Arrays({"variance": own.variance}), len(x))
        else:
            await way.give(at, uniting, peers, own.value, own.weight)
    if y is not None:
        # Comparing labels is work, but none in floating point.
        await at.send(uniting, Classes(labels=await at.compute(labels, y, cost=0.0)))
    if x.shape[1]:
        told = await at.recv(uniting, Scaling)
        scaler = Scaler(told.mean, told.scale)
    if y is not None:
        classes = (await at.recv(uniting, Classes)).labels
    return scaler, tuple(classes)


async def collect(
    at: Coordinator,
    clients: Sequence[str],
    width: int,
    *,
    labelled: bool,
    own: Sequence[Moments] = (),
    way: Sum = IN_THE_CLEAR,
) -> Agreement:
    """The other half, for `clients` that tell of `width` columns, and of their labels if `labelled`.

    own: moments of the uniting party's own rows, which come first; where the sum hides nothing. Raises
    ProtocolError for moments of another width, DataError for labels of different types, or of one class.
    """
    scaler: Scaler | None = None
    classes: list[Label] = []
    if width:
        scaler = await (_hidden if way.hides else _shown)(at, clients, width, own, way)
    if labelled:
        classes = unite_labels({p: m.labels for p, m in (await at.gather(Classes, of=clients)).items()})
        check_classes(classes)
    if scaler is not None:
        await at.broadcast(Scaling(mean=scaler.mean, scale=scaler.scale), to=clients)
    if labelled:
        await at.broadcast(Classes(labels=classes), to=clients)
    return scaler, tuple(classes)


async def _shown(
    at: Coordinator, clients: Sequence[str], width: int, own: Sequence[Moments], way: Sum
) -> Scaler:
    """From each client's own moments, which do not cancel where means are large (Chan et al.)."""
    like = Arrays({"mean": np.zeros(width), "variance": np.zeros(width)})
    parts = (await way.take(at, clients, like)).parts
    sums = [*own, *(Moments.of(part.value, part.weight) for part in parts.values())]
    return await at.compute(Scaler.combine, sums, cost=8.0 * width * len(sums))


async def _hidden(
    at: Coordinator, clients: Sequence[str], width: int, own: Sequence[Moments], way: Sum
) -> Scaler:
    """From two sums: of the means, and of the mean squares around the mean that came of the first."""
    assert not own
    mean = (await way.take(at, clients, Arrays({"mean": np.zeros(width)}))).mean["mean"]
    await at.broadcast(Scaling(mean=mean, scale=np.ones(width)), to=clients)
    variance = (await way.take(at, clients, Arrays({"variance": np.zeros(width)}))).mean["variance"]
    return await at.compute(Scaler.around, mean, variance, cost=4.0 * width)


def scaled(scaler: Scaler | None, x: Array) -> Array:
    """`x` (n, d) as networks take it, float32: standardised, or as it is where nothing was agreed."""
    return x.astype(np.float32) if scaler is None else scaler(x)


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
