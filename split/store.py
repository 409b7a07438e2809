"""What each party of split learning keeps on disk: its layers, and clients also how to read rows and outputs.

Nothing leaves a party. Every client keeps the same part; each part names the digests of the others, so
that layers of different runs are not put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pydantic import JsonValue
from torch import nn

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, DataError, VflError
from protocols.parts import Part, digest, load_part, save_part
from protocols.tables import Scaler
from split.layers import Layers, Plan
from split.setup import ClientPart, Label

SERVER = "server"


@dataclass(frozen=True)
class Fitted:
    """What training leaves at all parties."""

    client: ClientPart
    server: Layers
    clients: tuple[str, ...]
    columns: list[str]
    cut: tuple[int, ...]


def save(store: Path, run: str, method: str, fitted: Fitted) -> None:
    """Write every party's part as `<store>/<party>/<run>/`. Errors: see `protocols.parts.save_part`."""
    own = fitted.client
    cut: dict[str, JsonValue] = {"cut": list(fitted.cut)}
    settings: dict[str, JsonValue] = {**cut, "classes": list(own.classes), "columns": list(fitted.columns)}
    scaling = {**_scaling("features", own.features), **_scaling("target", own.target)}
    weights = Arrays({**_weights(own.model), **scaling})
    parts = {name: Part(method, name, settings, weights) for name in fitted.clients}
    tail = Arrays(_weights(fitted.server.module))
    parts[SERVER] = Part(method, SERVER, {**cut, "clients": list(fitted.clients)}, tail)
    digests = {name: digest(part) for name, part in parts.items()}
    for name, part in parts.items():
        others = {peer: told for peer, told in digests.items() if peer != name}
        save_part(store / name, run, replace(part, others=others))


def load(store: Path, run: str, method: str, plan: Plan) -> Fitted:
    """Read every party's part. ConfigError for a run of another method or cut; DataError for parts that
    are damaged or of different runs."""
    own = _read(store, SERVER, run, method, plan)
    clients = tuple(cast(list[str], own.settings["clients"]))
    parts = {name: _read(store, name, run, method, plan) for name in clients}
    for name, part in parts.items():
        if own.others.get(name) != digest(part) or part.others.get(SERVER) != digest(own):
            raise DataError(f"run {run!r}: the part does not belong to the server's").at(name, "load")
    first = parts[clients[0]]
    columns = cast(list[str], first.settings["columns"])
    classes = tuple(cast(list[Label], first.settings["classes"]))
    bottom, middle, *head = plan.parts(len(columns), len(classes) or 1)
    _layers(own.weights).load_into(middle.module)
    scalers = {name: _scaler(name, first.weights) for name in ("features", "target")}
    client = ClientPart(bottom, head[0] if head else None, scalers["features"], classes, scalers["target"])
    _layers(first.weights).load_into(client.model)
    return Fitted(client, middle, clients, columns, plan.cut)


def _read(store: Path, party: str, run: str, method: str, plan: Plan) -> Part:
    try:
        part = load_part(store / party, run)
        if part.method != method or part.settings["cut"] != list(plan.cut):
            raise ConfigError(
                f"run {run!r} is of {part.method} with cut {part.settings['cut']}, this is {method} with cut "
                f"{list(plan.cut)}"
            )
    except VflError as error:
        raise error.at(party, "load") from None
    return part


def _weights(module: nn.Module) -> Mapping[str, Array]:
    return {f"layers.{name}": array for name, array in Arrays.from_module(module).items()}


def _layers(weights: Arrays) -> Arrays:
    prefix = "layers."
    return Arrays((name.removeprefix(prefix), a) for name, a in weights.items() if name.startswith(prefix))


def _scaling(name: str, scaler: Scaler | None) -> Mapping[str, Array]:
    return {} if scaler is None else {f"{name}.mean": scaler.mean, f"{name}.scale": scaler.scale}


def _scaler(name: str, weights: Arrays) -> Scaler | None:
    mean = f"{name}.mean"
    return Scaler(weights[mean], weights[f"{name}.scale"]) if mean in weights else None
