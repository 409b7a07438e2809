"""What each party of split learning keeps on disk: its layers, and clients also how to read rows and outputs.

Nothing leaves a party. Every client keeps the same part; each part names the digests of the others, so
that layers of different runs are not put together.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, DataError, marked
from protocols.parts import Part, digest, load_part, save_part
from protocols.tables import Scaler
from split.layers import Layers, Plan
from split.messages import SERVER
from split.setup import ClientPart


@dataclass(frozen=True)
class Fitted:
    """What training leaves at all parties."""

    client: ClientPart
    server: Layers
    clients: tuple[str, ...]
    columns: list[Any]  # names, as in the first client's table
    target: str
    id: str | None


def save(store: Path, run: str | None, method: str, fitted: Fitted, settings: Mapping[str, Any]) -> str:
    """Write every party's part as `<store>/<party>/<run>/`; the run's id, drawn if none is given."""
    run = run or secrets.token_hex(8)
    own = fitted.client
    about: dict[str, Any] = {
        "classes": own.classes,
        "columns": fitted.columns,
        "target": fitted.target,
        "id": fitted.id,
    }
    scaling = {**_scaling("features", own.features), **_scaling("target", own.target)}
    weights = Arrays({**_weights(own.model), **scaling})
    parts = {name: Part(method, name, about, weights) for name in fitted.clients}
    told: dict[str, Any] = {"settings": dict(settings), "clients": fitted.clients}
    parts[SERVER] = Part(method, SERVER, told, Arrays(_weights(fitted.server.module)))
    digests = {name: digest(part) for name, part in parts.items()}
    for name, part in parts.items():
        others = {peer: said for peer, said in digests.items() if peer != name}
        save_part(store / name, run, replace(part, others=others))
    return run


def read_settings(store: Path, run: str, method: str) -> dict[str, Any]:
    """The estimator's settings. ConfigError for a run that is not there or of another method."""
    part = _read(store, SERVER, run)
    if part.method != method:
        raise ConfigError(f"run {run!r} is of {part.method}, expected {method}").at(SERVER, "load")
    settings: Any = part.settings["settings"]
    return dict(settings)


def load(store: Path, run: str, plan: Plan) -> Fitted:
    """Read every party's part into `plan`'s layers. ConfigError for a part that is not there or does not fit
    them, DataError for parts that are damaged or of different runs."""
    own = _read(store, SERVER, run)
    told: Mapping[str, Any] = own.settings
    clients = tuple(told["clients"])
    parts = {name: _read(store, name, run) for name in clients}
    for name, part in parts.items():
        if own.others.get(name) != digest(part) or part.others.get(SERVER) != digest(own):
            raise DataError(f"run {run!r}: this part and the server's are not of one run").at(name, "load")
    first = parts[clients[0]]
    about: Mapping[str, Any] = first.settings
    classes, columns = tuple(about["classes"]), list(about["columns"])
    bottom, middle, *head = plan.parts(len(columns), len(classes) or 1)
    features, target = (_scaler(name, first.weights) for name in ("features", "target"))
    client = ClientPart(bottom, head[0] if head else None, features, classes, target)
    for weights, module in ((own.weights, middle.module), (first.weights, client.model)):
        try:
            _layers(weights).load_into(module)
        except DataError as error:
            raise ConfigError(f"run {run!r} does not fit the model: {error}; bring the saved one") from None
    return Fitted(client, middle, clients, columns, about["target"], about["id"])


def _read(store: Path, party: str, run: str) -> Part:
    with marked(party, "load"):
        return load_part(store / party, run)


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
