"""A fitted horizontal model as parts on disk. Every party's part is the whole model, so any one will do.

Takes part: each party alone, in its own store; nothing leaves.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue
from torch import nn

from horizontal.setup import Agreed
from protocols.arrays import Arrays
from protocols.errors import ConfigError
from protocols.parts import Part, load_part, save_part
from protocols.tables import Scaler

NETWORK = "network."


def save_parts(
    store: Path,
    run: str | None,
    parties: Iterable[str],
    method: str,
    settings: Mapping[str, JsonValue],
    module: nn.Module,
    agreed: Agreed,
) -> str:
    """Write `<store>/<party>/<run>` for every party; the run's name, drawn if none is given."""
    run = run or secrets.token_hex(8)
    arrays = {NETWORK + name: a for name, a in Arrays.from_module(module).items()}
    for name, scaler in (("features", agreed.features), ("target", agreed.target)):
        if scaler is not None:
            arrays |= {f"{name}.mean": scaler.mean, f"{name}.scale": scaler.scale}
    told = {**settings, "classes": cast(JsonValue, list(agreed.classes))}
    for party in parties:
        save_part(store / party, run, Part(method, party, told, Arrays(arrays)))
    return run


def read_part(store: Path, run: str, party: str, method: str) -> tuple[Mapping[str, Any], Arrays, Agreed]:
    """The settings, the network's weights and what was agreed, from one party's part."""
    part = load_part(store / party, run)
    if part.method != method:
        raise ConfigError(f"run {run!r} of {party} is a {part.method}, expected {method}")
    weights = Arrays((n.removeprefix(NETWORK), a) for n, a in part.weights.items() if n.startswith(NETWORK))
    classes = cast(list[bool | int | str], part.settings["classes"])
    agreed = Agreed(tuple(classes), _scaler(part.weights, "features"), _scaler(part.weights, "target"))
    return part.settings, weights, agreed


def _scaler(arrays: Arrays, name: str) -> Scaler | None:
    mean = arrays.get(f"{name}.mean")
    return None if mean is None else Scaler(mean, arrays[f"{name}.scale"])
