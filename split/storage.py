"""What each party of split learning keeps on disk: its layers, and clients also how to read rows and outputs.

Nothing leaves a party. Every client keeps the same part; each part names the digests of the others, so
that layers of different runs are not put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError
from protocols.parts import Part
from protocols.saving import prefixed, save_parts, scaler_arrays, scaler_in, under
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
    own = fitted.client
    about: dict[str, Any] = {
        "classes": own.classes,
        "columns": fitted.columns,
        "target": fitted.target,
        "id": fitted.id,
    }
    arrays = prefixed("layers", Arrays.from_module(own.model))
    arrays |= scaler_arrays("features", own.features) | scaler_arrays("target", own.target)
    weights = Arrays(arrays)
    parts = {name: Part(method, name, about, weights) for name in fitted.clients}
    told: dict[str, Any] = {"settings": dict(settings), "clients": fitted.clients}
    tail = prefixed("layers", Arrays.from_module(fitted.server.module))
    parts[SERVER] = Part(method, SERVER, told, Arrays(tail))
    return save_parts(store, run, parts)


def settings_in(parts: Mapping[str, Part]) -> dict[str, Any]:
    """The estimator's settings, from all parties' parts."""
    settings: Any = parts[SERVER].settings["settings"]
    return dict(settings)


def fitted_in(parts: Mapping[str, Part], plan: Plan) -> Fitted:
    """All parties' parts, in `plan`'s layers. ConfigError where they do not fit these."""
    own = parts[SERVER]
    told: Mapping[str, Any] = own.settings
    clients = tuple(told["clients"])
    first = parts[clients[0]]
    about: Mapping[str, Any] = first.settings
    classes, columns = tuple(about["classes"]), list(about["columns"])
    bottom, middle, *head = plan.parts(len(columns), len(classes) or 1)
    features, target = (scaler_in(name, first.weights) for name in ("features", "target"))
    client = ClientPart(bottom, head[0] if head else None, features, classes, target)
    for weights, module in ((own.weights, middle.module), (first.weights, client.model)):
        try:
            under("layers", weights).load_into(module)
        except DataError as error:
            raise ConfigError(f"the run does not fit the model: {error}; bring the saved one") from None
    return Fitted(client, middle, clients, columns, about["target"], about["id"])
