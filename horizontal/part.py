"""What a party keeps of a horizontal model on disk: the whole of it, so that any party's part will do.

Takes part: each party alone, in its own store; nothing leaves. A server that was told no column names keeps
none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from horizontal.agreement import Agreed
from horizontal.rounds import Trained
from protocols.arrays import Arrays, prefixed, under
from protocols.data.tables import scaler_arrays, scaler_in
from protocols.estimator import load_parts
from protocols.parts import Part


def part_of(
    method: str,
    party: str,
    trained: Trained,
    *,
    parameters: Mapping[str, JsonValue],
    target: str,
    id: str | None,
    clients: Sequence[str],
    brought: bool = False,
) -> Part:
    """One party's part. parameters: of the estimator. brought: whether the network has no name."""
    agreed = trained.agreed
    arrays = prefixed("network", trained.weights)
    arrays |= scaler_arrays("features", agreed.features) | scaler_arrays("target", agreed.target)
    told: dict[str, JsonValue] = {
        "parameters": dict(parameters),
        "brought": brought,
        "inputs": agreed.inputs,
        "features": None if trained.columns is None else list(trained.columns),
        "classes": list(agreed.classes),
        "target": target,
        "id": id,
        "clients": list(clients),
    }
    return Part(method, party, told, Arrays(arrays))


def trained_in(part: Part) -> Trained:
    """What a party held when training was over, from its part; without a history."""
    told: Mapping[str, Any] = part.settings
    features, target = (scaler_in(name, part.weights) for name in ("features", "target"))
    agreed = Agreed(told["inputs"], tuple(told["classes"]), features, target)
    columns = None if told["features"] is None else tuple(told["features"])
    return Trained(under("network", part.weights), agreed, columns)


def load(store: Path, run: str, party: str, method: str) -> tuple[Mapping[str, Any], Trained]:
    """The settings and what was learnt, from one party's part."""
    part = load_parts(store, run, method, [party])[party]
    return cast(Mapping[str, Any], part.settings), trained_in(part)
