"""What each party keeps of a vertical network, and how it is saved: every part apart from the others.

Takes part: each party, about its own part. A part holds this party's standardisation and bottom model; the
label party's also holds the top model, the classes and the settings. On disk each part carries the digests
of the others (see `protocols.parts`), so that parts of different runs are not mixed.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, DataError
from protocols.models import mlp
from protocols.parts import Part, digest, load_part, save_part
from protocols.tables import Scaler
from vfl.layout import default_bottom
from vfl.neural import Bottom, Top


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
    run = run or secrets.token_hex(8)
    parts = {party: _part(method, party, own, settings, brought) for party, own in owns.items()}
    digests = {party: digest(part) for party, part in parts.items()}
    for party, part in parts.items():
        others = {peer: said for peer, said in digests.items() if peer != party}
        save_part(store / party, run, replace(part, others=others))
    return run


def load(
    store: Path, run: str, method: str, bottoms: Mapping[str, nn.Module], top: nn.Module | None
) -> tuple[dict[str, Any], dict[str, Own]]:
    """What `save` wrote: the settings, and every party's part.

    Raises ConfigError for what is not there, DataError for what is damaged or does not belong together.
    """
    found = sorted(path.parent.parent.name for path in store.glob(f"*/{run}/part.json"))
    if not found:
        raise ConfigError(f"run {run!r} is at no party in this store")
    parts = {party: load_part(store / party, run) for party in found}
    for party, part in parts.items():
        if part.method != method:
            raise ConfigError(f"run {run!r} is of {part.method}, expected {method}").at(party, "load")
        for peer, said in part.others.items():
            if peer not in parts:
                raise ConfigError(f"the part of {peer} in run {run!r} is missing").at(party, "load")
            if digest(parts[peer]) != said:
                raise DataError(f"the part of {peer} is not of the same training").at(party, "load")
    told: list[Any] = [part.settings["settings"] for part in parts.values() if "settings" in part.settings]
    if len(told) != 1:
        raise DataError(f"{len(told)} parts of run {run!r} are a label party's, expected one")
    hidden: tuple[int, ...] = tuple(told[0]["hidden"])
    return {**told[0], "hidden": hidden}, {
        party: _own(party, part, bottoms.get(party), top, hidden) for party, part in parts.items()
    }


def _part(method: str, party: str, own: Own, settings: Mapping[str, Any], brought: set[str]) -> Part:
    about: dict[str, Any] = {"id": own.id, "columns": own.columns, "brought": party in brought}
    arrays: dict[str, Array] = {}
    if own.bottom is not None:
        arrays |= _prefixed("bottom", own.bottom.module) | _scaling("scaler", own.bottom.scaler)
    if own.top is not None:
        about |= {"target": own.target, "classes": own.top.classes, "widths": dict(own.top.widths)}
        about |= {"brought_top": "top" in brought, "settings": {**settings, "hidden": [*settings["hidden"]]}}
        arrays |= _prefixed("top", own.top.module)
        arrays |= _scaling("target", own.top.scaler) if own.top.scaler else {}
    return Part(method, party, about, Arrays(arrays))


def _own(
    party: str, part: Part, bottom: nn.Module | None, top: nn.Module | None, hidden: tuple[int, ...]
) -> Own:
    about: Mapping[str, Any] = part.settings
    weights = part.weights
    columns = list(about["columns"])
    if bottom is None and about["brought"]:
        raise ConfigError(f"this bottom model is no default one; pass bottoms={{{party!r}: module}}").at(
            party, "load"
        )
    own = None
    if "scaler.mean" in weights:
        if bottom is None:
            bottom = default_bottom(len(columns), len(weights["bottom.0.bias"]))
        own = Bottom(_scaler("scaler", weights), _loaded("bottom", bottom, weights))
    if "settings" not in about:
        return Own(about["id"], columns, own)
    if top is None:
        if about["brought_top"]:
            raise ConfigError("this top model is no default one; pass top=module").at(party, "load")
        count = len(about["classes"]) if about["classes"] else 1
        top = mlp(weights["top.0.weight"].shape[1], count, hidden[1:])
    scaler = _scaler("target", weights) if "target.mean" in weights else None
    learnt = Top(_loaded("top", top, weights), about["widths"], about["classes"], scaler)
    return Own(about["id"], columns, own, about["target"], learnt)


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Array]:
    return {f"{prefix}.{name}": array for name, array in Arrays.from_module(module).items()}


def _loaded(prefix: str, module: nn.Module, weights: Arrays) -> nn.Module:
    own = {n.removeprefix(f"{prefix}."): a for n, a in weights.items() if n.startswith(f"{prefix}.")}
    module = copy.deepcopy(module)
    Arrays(own).load_into(module)
    return module


def _scaling(prefix: str, scaler: Scaler) -> dict[str, Array]:
    return {f"{prefix}.mean": scaler.mean, f"{prefix}.scale": scaler.scale}


def _scaler(prefix: str, weights: Arrays) -> Scaler:
    return Scaler(np.array(weights[f"{prefix}.mean"]), np.array(weights[f"{prefix}.scale"]))
