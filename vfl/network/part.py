"""What each party keeps of a vertical network, and how it is saved: every part apart from the others.

Takes part: each party, about its own part. A part holds this party's standardisation and bottom model; the
label party's also holds the top model, the classes and the settings. On disk each part carries the digests
of the others (see `protocols.estimator`), so that parts of different runs are not mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from protocols.arrays import Array, Arrays, prefixed, under
from protocols.data.tables import scaler_arrays, scaler_in
from protocols.errors import ConfigError, marked
from protocols.estimator import load_parts, save_parts, settings_in
from protocols.flops import copied
from protocols.learning.networks import mlp
from protocols.parts import Part
from vfl.network.layout import default_bottom
from vfl.network.roles import Bottom, Top


@dataclass(frozen=True)
class Own:
    """One party's own part. Those of the label party have `target` and `top`."""

    id: str
    columns: list[str]
    bottom: Bottom | None  # None at a label party without features
    target: str = ""
    top: Top | None = None


def save(
    store: Path,
    run: str | None,
    method: str,
    owns: Mapping[str, Own],
    settings: Mapping[str, Any],
    brought: set[str],
) -> str:
    """Write every party's part to `<store>/<party>/<run>/`; returns the run's id.

    brought: the parties whose bottom model, and "top" if the top model, is not the default one.
    """
    parts = {party: part_of(method, party, own, settings, brought) for party, own in owns.items()}
    return save_parts(store, run, parts)


def load(
    store: Path, run: str, method: str, bottoms: Mapping[str, nn.Module], top: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Own]]:
    """What `save` wrote: the settings, and every party's part.

    Raises ConfigError for what is not there, DataError for what is damaged or does not belong together.
    """
    parts = load_parts(store, run, method)
    told = settings_in(run, parts)
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    owns = {}
    for party, part in parts.items():
        with marked(party, "load"):
            owns[party] = own_of(party, part, bottoms.get(party), top, settings["hidden"])
    return settings, owns


def part_of(method: str, party: str, own: Own, settings: Mapping[str, Any], brought: set[str]) -> Part:
    """One party's own, for its store; the rest as in `save`. `settings` go with the label party's."""
    about: dict[str, Any] = {"id": own.id, "columns": own.columns, "brought": party in brought}
    arrays: dict[str, Array] = {}
    if own.bottom is not None:
        arrays |= prefixed("bottom", Arrays.from_module(own.bottom.module))
        arrays |= scaler_arrays("scaler", own.bottom.scaler)
    if own.top is not None:
        about |= {"target": own.target, "classes": own.top.classes, "widths": dict(own.top.widths)}
        about |= {"brought_top": "top" in brought, "settings": _as_json(settings)}
        arrays |= prefixed("top", Arrays.from_module(own.top.module))
        arrays |= scaler_arrays("target", own.top.scaler)
    return Part(method, party, about, Arrays(arrays))


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [*value] if isinstance(value, tuple | list) else value for name, value in settings.items()}


def own_of(
    party: str, part: Part, bottom: nn.Module | None, top: nn.Module | None, hidden: tuple[int, ...]
) -> Own:
    """What one party kept in `part`; the rest as in `load`. `hidden`: as the label party's settings say."""
    about: Mapping[str, Any] = part.settings
    weights = part.weights
    columns = list(about["columns"])
    if bottom is None and about["brought"]:
        raise ConfigError(f"this bottom model is no default one; pass bottoms={{{party!r}: module}}")
    own, scaler = None, scaler_in("scaler", weights)
    if scaler is not None:
        if bottom is None:
            bottom = default_bottom(len(columns), len(weights["bottom.0.bias"]))
        own = Bottom(scaler, _loaded("bottom", bottom, weights))
    if "settings" not in about:
        return Own(about["id"], columns, own)
    if top is None:
        if about["brought_top"]:
            raise ConfigError("this top model is no default one; pass top=module")
        count = len(about["classes"]) if about["classes"] else 1
        top = mlp(weights["top.0.weight"].shape[1], count, hidden[1:])
    module = _loaded("top", top, weights)
    learnt = Top(module, about["widths"], about["classes"], scaler_in("target", weights))
    return Own(about["id"], columns, own, about["target"], learnt)


def _loaded(name: str, module: nn.Module, weights: Arrays) -> nn.Module:
    module = copied(module)
    under(name, weights).load_into(module)
    return module
