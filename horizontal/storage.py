"""A fitted horizontal model as parts on disk. Every party's part is the whole model, so any one will do.

Takes part: each party alone, in its own store; nothing leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue
from torch import nn

from horizontal.setup import Agreed
from protocols.arrays import Arrays
from protocols.parts import Part
from protocols.saving import load_parts, prefixed, save_parts, scaler_arrays, scaler_in, under


def save(
    store: Path,
    run: str | None,
    parties: Iterable[str],
    method: str,
    settings: Mapping[str, JsonValue],
    module: nn.Module,
    agreed: Agreed,
) -> str:
    """Write `<store>/<party>/<run>` for every party; the run's name, drawn if none is given."""
    arrays = prefixed("network", Arrays.from_module(module))
    arrays |= scaler_arrays("features", agreed.features) | scaler_arrays("target", agreed.target)
    told = {**settings, "classes": cast(JsonValue, list(agreed.classes))}
    weights = Arrays(arrays)
    return save_parts(store, run, {party: Part(method, party, told, weights) for party in parties})


def load(store: Path, run: str, party: str, method: str) -> tuple[Mapping[str, Any], Arrays, Agreed]:
    """The settings, the network's weights and what was agreed, from one party's part."""
    part = load_parts(store, run, method, [party])[party]
    classes = cast(list[bool | int | str], part.settings["classes"])
    features, target = (scaler_in(name, part.weights) for name in ("features", "target"))
    return part.settings, under("network", part.weights), Agreed(tuple(classes), features, target)
