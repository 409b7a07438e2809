"""What the three paradigms are measured against: centralised, edge inference, each party alone.

Centralised: row-clients upload their rows to a server, which learns every cell and every label; it trains,
and answers for the test rows, which a client uploads too. Edge: the same, then the server sends the model
to each client, which from then on predicts with no line at all. Alone: one owner of columns trains on
them with the label and tells nobody anything; for an owner that has no label this is hypothetical.

No protection is claimed here beyond that of the lines. Everything goes through `training.train`
with the task's settings, so that a baseline differs from a paradigm in who holds what, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from protocols.arrays import Array, Arrays
from protocols.compare.task import Method, Outcome, Task, score
from protocols.data import tables
from protocols.data.tables import Kind, Scaler
from protocols.errors import marked
from protocols.federation import simulate
from protocols.learning.networks import count_parameters
from protocols.learning.training import Settings, epoch_flops, outputs, outputs_flops, probabilities, train
from protocols.party import Coordinator, Party, Role
from protocols.wire.message import Message, Spec

SERVER = "server"
ASKING = "client0"  # the client that brings the test rows
Labels = list[bool | int | str]


class Rows(
    Message,
    reveals="every cell and every label of one client's training rows, in the clear",
    carries={"rows", "labels"},
):
    """The bulk upload of centralised training."""

    x: Annotated[Array, Spec("float64", ("n", "d"))]
    y: Annotated[Array, Spec("int64|float64", ("n",))]  # positions in `classes`, or numbers
    classes: Labels  # sorted; none in regression


class Questions(Message, reveals="every cell of the rows to predict, in the clear", carries={"rows"}):
    """Rows without their label."""

    x: Annotated[Array, Spec("float64", ("n", "d"))]


class Answers(Message, reveals="the prediction for each row asked about, to the one who asked"):
    """Class probabilities, or one number a row."""

    values: Annotated[Array, Spec("float64", ("n", "k"))]


class Model(Message, reveals="the whole trained model, with the mean and deviation of every column"):
    """What a device needs to predict alone."""

    weights: Arrays
    mean: Annotated[Array, Spec("float64", ("d",))]
    scale: Annotated[Array, Spec("float64", ("d",))]
    target: Annotated[Array, Spec("float64", (2,))]  # mean and deviation of a regression target, or 0 and 1
    classes: Labels


@dataclass(frozen=True)
class Sample:
    """Rows ready to train on, still in their own units."""

    x: Array  # (n, d) float64
    y: Array  # (n,) int64 positions in `classes`, or float64
    classes: Labels


@dataclass(frozen=True)
class Trained:
    """A network and what surrounds it."""

    module: nn.Module
    scaler: Scaler
    target: tuple[float, float]  # mean and deviation of a regression target, or 0 and 1
    classes: Labels

    def predict(self, x: Array) -> Array:
        """(n, d) in its own units -> (n, classes) probabilities, or (n, 1) numbers; float64."""
        raw = outputs(self.module, torch.from_numpy(self.scaler(x)))
        if self.classes:
            return probabilities(raw)
        mean, scale = self.target
        return raw.astype(np.float64) * scale + mean

    def predict_flops(self, x: Array) -> float:
        """FLOPs of `predict`."""
        return outputs_flops(self.module, x.shape) + 2 * x.size


def sample(frame: pd.DataFrame, columns: Sequence[str], target: str, kind: Kind) -> Sample:
    """`frame`'s rows as arrays. DataError for a table that cannot be used."""
    x = tables.features(frame, columns)
    y = tables.column(frame, target, "target")
    if kind == "regression":
        return Sample(x, tables.features(y.to_frame())[:, 0], [])
    classes = tables.labels(y)
    return Sample(x, tables.encode_labels(y, classes), classes)


def pool(parts: Sequence[Sample | Rows]) -> Sample:
    """All rows together, in the order given, labels united."""
    classes: Labels = sorted({label for part in parts for label in part.classes})
    place = {label: i for i, label in enumerate(classes)}
    ys = [np.array([place[c] for c in p.classes], np.int64)[p.y] if classes else p.y for p in parts]
    return Sample(np.concatenate([p.x for p in parts]), np.concatenate(ys), classes)


def standardise(rows: Sample) -> tuple[torch.Tensor, torch.Tensor, Scaler, tuple[float, float]]:
    """Network inputs float32 (n, d), targets int64 (n,) or float32 (n, 1), and how they were made."""
    scaler = Scaler.fit(rows.x)
    x = torch.from_numpy(scaler(rows.x))
    if rows.classes:
        return x, torch.from_numpy(rows.y), scaler, (0.0, 1.0)
    column = rows.y[:, None]
    of_target = Scaler.fit(column)
    target = float(of_target.mean[0]), float(of_target.scale[0])
    return x, torch.from_numpy(of_target(column)), scaler, target


async def fit(me: Party, rows: Sample, module: nn.Module, settings: Settings) -> Trained:
    """Train `module`, in place, on rows that this party holds."""
    if rows.classes:
        tables.check_classes(rows.classes)
    async with me.within("fit") as at:
        # Six FLOPs a cell: mean, variance, and the shift and scale.
        x, y, scaler, target = await at.compute(standardise, rows, cost=6.0 * rows.x.size)
        optimizer = settings.new_optimizer(module.parameters())
        rng = at.rng("batches")
        cost = epoch_flops(module, tuple(x.shape), settings.batch_size)

        def epoch() -> float:
            return train(module, x, y, settings, rng, optimizer=optimizer)

        for done in range(settings.epochs):
            await at.compute(epoch, cost=cost)
            at.progress("epochs", done + 1, settings.epochs)
    return Trained(module, scaler, target, rows.classes)


async def source(me: Party, rows: Sample, server: str = SERVER) -> None:
    """A client that gives its rows away."""
    async with me.within("setup") as at:
        await at.send(server, Rows(x=rows.x, y=rows.y, classes=rows.classes))


async def trainer(me: Coordinator, module: nn.Module, settings: Settings) -> Trained:
    """The server that collects all rows and trains on them."""
    async with me.within("setup") as at:
        parts = await at.gather(Rows)
        rows = await at.compute(pool, list(parts.values()), cost=0.0)  # copies only
    return await fit(me, rows, module, settings)


async def shipper(me: Coordinator, module: nn.Module, settings: Settings) -> Trained:
    """The server that trains, then deploys its model to every client."""
    trained = await trainer(me, module, settings)
    async with me.within("deploy") as at:
        await at.broadcast(
            Model(
                weights=Arrays.from_module(trained.module),
                mean=trained.scaler.mean,
                scale=trained.scaler.scale,
                target=np.array(trained.target),
                classes=trained.classes,
            )
        )
    return trained


async def device(me: Party, rows: Sample, blank: nn.Module, server: str = SERVER) -> Trained:
    """A client that gives its rows away and gets the model back; `blank` is the network's shape."""
    await source(me, rows, server)
    async with me.within("deploy") as at:
        model = await at.recv(server, Model, like=Arrays.from_module(blank))
    model.weights.load_into(blank)
    mean, scale = model.target.tolist()
    return Trained(blank, Scaler(model.mean, model.scale), (mean, scale), model.classes)


async def ask(me: Party, x: Array, server: str = SERVER) -> Array:
    """A client that has its rows predicted by the server."""
    async with me.within("predict") as at:
        await at.send(server, Questions(x=x))
        return (await at.recv(server, Answers)).values


async def answer(me: Party, trained: Trained, client: str = ASKING) -> None:
    """The server that predicts what a client asks about."""
    async with me.within("predict") as at:
        x = (await at.recv(client, Questions)).x
        values = await at.compute(trained.predict, x, cost=trained.predict_flops(x))
        await at.send(client, Answers(values=values))


async def predict_here(me: Party, trained: Trained, x: Array) -> Array:
    """Predict one's own rows with one's own model."""
    async with me.within("predict") as at:
        return await at.compute(trained.predict, x, cost=trained.predict_flops(x))


def centralised(task: Task) -> list[Method]:
    """All rows uploaded to one server, which trains and answers."""
    return [
        Method(
            "centralised",
            "centralised",
            "All rows are collected at one server, which trains the whole model and answers for new rows.",
            "Perimeter security and access control at the server. Nothing is hidden from the server.",
            _run_centralised,
        )
    ]


def edge(task: Task) -> list[Method]:
    """Trained centrally, the model shipped to each client, which predicts with no network."""
    return [
        Method(
            "edge",
            "edge",
            "Trained at one server on all rows; every client then holds the whole model and predicts alone.",
            "Local processing of new rows. It does not cover training: the server saw every training row.",
            _run_edge,
        )
    ]


def alone(task: Task) -> list[Method]:
    """Each owner of columns trains on its own, with the label; hypothetical for those without one."""
    return [_alone(party, hypothetical=party != task.label_party) for party in task.columns]


def _alone(party: str, hypothetical: bool) -> Method:
    def run(task: Task, seed: int) -> Outcome:
        return _run_alone(task, seed, party)

    return Method(
        f"alone: {party}" + (" (hypothetical)" if hypothetical else ""),
        "alone",
        "One organisation trains on its own columns" + (", lent the label." if hypothetical else "."),
        "Nothing leaves." + (" Hypothetical: this organisation holds no label." if hypothetical else ""),
        run,
        hypothetical,
        needs="own table",
    )


def _run_centralised(task: Task, seed: int) -> Outcome:
    train_rows, test = task.split(seed)
    clients = _clients(task, train_rows, seed)
    module = task.network(len(task.features), seed)
    roles: dict[str, Role] = {SERVER: lambda me: trainer(me, module, task.settings)}
    for name, rows in clients.items():
        roles[name] = lambda me, rows=rows: source(me, rows)  # type: ignore[misc]
    training = simulate(roles, seed=seed)
    trained: Trained = training.results[SERVER]
    x = tables.features(test, task.features)
    asking: dict[str, Role] = {SERVER: lambda me: answer(me, trained), ASKING: lambda me: ask(me, x)}
    predicting = simulate(asking, seed=seed)
    return Outcome(
        score(task, test[task.target], _predicted(predicting.results[ASKING], trained.classes, test.index)),
        training.ledger,
        predicting.ledger,
        {SERVER: count_parameters(module)},
        frozenset(clients),
        task.settings.epochs,
    )


def _run_edge(task: Task, seed: int) -> Outcome:
    train_rows, test = task.split(seed)
    clients = _clients(task, train_rows, seed)
    module = task.network(len(task.features), seed)
    roles: dict[str, Role] = {SERVER: lambda me: shipper(me, module, task.settings)}
    for name, rows in clients.items():
        blank = task.network(len(task.features), seed)
        roles[name] = lambda me, rows=rows, blank=blank: device(me, rows, blank)  # type: ignore[misc]
    training = simulate(roles, seed=seed)
    trained: Trained = training.results[ASKING]
    x = tables.features(test, task.features)
    predicting = simulate({ASKING: lambda me: predict_here(me, trained, x)}, seed=seed)
    return Outcome(
        score(task, test[task.target], _predicted(predicting.results[ASKING], trained.classes, test.index)),
        training.ledger,
        predicting.ledger,
        dict.fromkeys((SERVER, *clients), count_parameters(module)),
        frozenset(clients),
        task.settings.epochs,
    )


def _run_alone(task: Task, seed: int, party: str) -> Outcome:
    train_rows, test = task.split(seed)
    columns = task.columns[party]
    rows = _checked(party, train_rows, columns, task)
    module = task.network(len(columns), seed)
    training = simulate({party: lambda me: fit(me, rows, module, task.settings)}, seed=seed)
    trained: Trained = training.results[party]
    x = tables.features(test, columns)
    predicting = simulate({party: lambda me: predict_here(me, trained, x)}, seed=seed)
    return Outcome(
        score(task, test[task.target], _predicted(predicting.results[party], trained.classes, test.index)),
        training.ledger,
        predicting.ledger,
        {party: count_parameters(module)},
        frozenset([party]),
        task.settings.epochs,
    )


def _clients(task: Task, frame: pd.DataFrame, seed: int) -> Mapping[str, Sample]:
    dealt = task.row_clients(frame, seed)
    return {name: _checked(name, rows, task.features, task) for name, rows in dealt.items()}


def _checked(party: str, frame: pd.DataFrame, columns: Sequence[str], task: Task) -> Sample:
    with marked(party, "fit"):
        return sample(frame, columns, task.target, task.settings.kind)


def _predicted(values: Array, classes: Labels, index: pd.Index[Any]) -> pd.DataFrame | pd.Series:
    if classes:
        return pd.DataFrame(values, index=index, columns=pd.Index(classes))
    return pd.Series(values[:, 0], index=index)
